/* Command-line options of a verb, declared as a table: parsing (getopt_long), help and errors follow from it. */
#ifndef KILN_CLI_OPTIONS_H
#define KILN_CLI_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Values of a repeatable option, in order. */
typedef struct OptionList {
  const char *items[64];
  size_t count;
} OptionList;

typedef enum OptionKind { OPTION_FLAG, OPTION_TEXT, OPTION_LIST, OPTION_INT, OPTION_DOUBLE } OptionKind;

typedef struct Option {
  const char *name; /* without dashes */
  char letter;      /* short form, or 0 */
  OptionKind kind;
  void *target;      /* bool, const char *, OptionList, int64_t or double, by kind */
  const char *value; /* how the value is called in help: "FILE" */
  const char *help;
  int64_t minimum, maximum; /* OPTION_INT */
} Option;

typedef struct Verb {
  const char *name, *summary;
  const char *usage; /* "MODEL --weights FILE [options]" */
  const char *description;
  const char *examples; /* a line each */
  int (*run)(int argc, char **argv);
} Verb;

/* Exit codes of the program. */
enum { EXIT_OK = 0, EXIT_FAILED = 1, EXIT_USAGE = 2 };

/* Parses argv (argv[0] is the verb). Positional arguments: at least `minimum`, at most `maximum`, into `positional`.
 * Returns -1 to go on, else the exit code (help was printed, or a usage error). Options end with a NULL name. */
int options_parse(const Verb *verb, const Option *options, int argc, char **argv, int minimum, int maximum,
                  const char **positional);

#endif
