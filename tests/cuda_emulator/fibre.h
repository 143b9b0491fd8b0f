/* Stacks that take turns on one host thread. */
#ifndef KILN_EMULATOR_FIBRE_H
#define KILN_EMULATOR_FIBRE_H

#include <stddef.h>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

typedef struct Fibre {
#if defined(__x86_64__)
  void *stack_pointer;
#else
  ucontext_t context;
#endif
  char *stack;
} Fibre;

/* `body` runs on the stack at the first switch and never returns. */
void fibre_init(Fibre *fibre, char *stack, size_t size, void (*body)(void));
/* Leaves `from` and goes on in `to`. A Fibre that is only ever left and come back to needs no init. */
void fibre_switch(Fibre *from, Fibre *to);

#endif
