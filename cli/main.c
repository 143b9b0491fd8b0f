/* The kiln program: finds the verb and runs it. */
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "common.h"

static const Verb *const verbs[] = {&verb_check,  &verb_summary, &verb_init,  &verb_run,  &verb_compile,
                                    &verb_verify, &verb_explain, &verb_bench, &verb_grad, &verb_heatmap,
                                    &verb_stats,  &verb_train,   &verb_lr_find, &verb_augment, &verb_tune,
                                    &verb_inspect, &verb_ops,    &verb_devices};
enum { VERB_COUNT = sizeof verbs / sizeof verbs[0] };

static void print_usage(FILE *stream) {
  fprintf(stream, "kiln %s: a compiler and JIT for convolutional networks\n\nUsage: kiln VERB [arguments]\n\n",
          kiln_version());
  for (size_t i = 0; i < VERB_COUNT; i++) fprintf(stream, "  %-9s %s\n", verbs[i]->name, verbs[i]->summary);
  fprintf(stream,
          "\n'kiln VERB --help' explains a verb, with examples. Exit codes: 0 success, 1 failure, 2 wrong usage.\n");
}

/* A standard stream that the caller has closed must not become the first file opened here: its place is taken, so that
 * using it fails. */
static void occupy_streams(void) {
  for (int stream = STDIN_FILENO; stream <= STDERR_FILENO; stream++)
    if (fcntl(stream, F_GETFD) < 0 && open("/dev/null", stream == STDIN_FILENO ? O_WRONLY : O_RDONLY) < 0) return;
}

static int run_verb(int argc, char **argv) {
  if (argc < 2 || strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 || strcmp(argv[1], "help") == 0) {
    print_usage(argc < 2 ? stderr : stdout);
    return argc < 2 ? EXIT_USAGE : EXIT_OK;
  }
  if (strcmp(argv[1], "--version") == 0) {
    printf("kiln %s\n", kiln_version());
    return EXIT_OK;
  }
  const char *names[VERB_COUNT];
  for (size_t i = 0; i < VERB_COUNT; i++) {
    names[i] = verbs[i]->name;
    if (strcmp(argv[1], names[i]) == 0) return verbs[i]->run(argc - 1, argv + 1);
  }
  const char *near = nearest_word(argv[1], names, VERB_COUNT);
  fprintf(stderr, "kiln: unknown verb '%s'%s%s%s\n", argv[1], near ? "; did you mean " : "", near ? near : "",
          near ? "?" : "");
  return EXIT_USAGE;
}

int main(int argc, char **argv) {
  occupy_streams();
  /* a reader that goes away early (kiln summary … | head) is not an error worth a signal */
  signal(SIGPIPE, SIG_IGN);
  return output_finish(run_verb(argc, argv));
}
