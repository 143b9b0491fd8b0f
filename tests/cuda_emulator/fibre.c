#include "fibre.h"

#include <stdint.h>

#if defined(__x86_64__)
/* Saves what the System V ABI has a function keep; the floating-point control words are the same in all fibres. */
void fibre_swap_stacks(void **save, void *load);
__asm__(
    ".text\n"
    ".globl fibre_swap_stacks\n"
    ".hidden fibre_swap_stacks\n"
    ".type fibre_swap_stacks, @function\n"
    "fibre_swap_stacks:\n"
    "  push %rbp\n"
    "  push %rbx\n"
    "  push %r12\n"
    "  push %r13\n"
    "  push %r14\n"
    "  push %r15\n"
    "  mov %rsp, (%rdi)\n"
    "  mov %rsi, %rsp\n"
    "  pop %r15\n"
    "  pop %r14\n"
    "  pop %r13\n"
    "  pop %r12\n"
    "  pop %rbx\n"
    "  pop %rbp\n"
    "  ret\n"
    ".size fibre_swap_stacks, .-fibre_swap_stacks\n");

void fibre_init(Fibre *fibre, char *stack, size_t size, void (*body)(void)) {
  enum { SAVED_REGISTERS = 6 };
  uintptr_t *top = (uintptr_t *)(void *)(stack + size);
  *--top = 0; /* the return address that body does not use; keeps the stack aligned as at a call */
  *--top = (uintptr_t)body;
  for (int i = 0; i < SAVED_REGISTERS; i++) *--top = 0;
  fibre->stack = stack;
  fibre->stack_pointer = top;
}

void fibre_switch(Fibre *from, Fibre *to) { fibre_swap_stacks(&from->stack_pointer, to->stack_pointer); }
#else
void fibre_init(Fibre *fibre, char *stack, size_t size, void (*body)(void)) {
  fibre->stack = stack;
  getcontext(&fibre->context);
  fibre->context.uc_stack.ss_sp = stack;
  fibre->context.uc_stack.ss_size = size;
  fibre->context.uc_link = NULL;
  makecontext(&fibre->context, body, 0);
}

void fibre_switch(Fibre *from, Fibre *to) { swapcontext(&from->context, &to->context); }
#endif
