#include "options.h"

#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/text.h"

enum { OPTION_MAX = 80, HELP_COLUMN = 34 };

static void print_help(const Verb *verb, const Option *options) {
  printf("Usage: kiln %s %s\n\n%s\n", verb->name, verb->usage, verb->description);
  printf("\nOptions:\n");
  for (const Option *option = options; option->name != NULL; option++) {
    char left[96];
    int width = snprintf(left, sizeof left, "  %c%c%s--%s%s%s", option->letter ? '-' : ' ',
                         option->letter ? option->letter : ' ', option->letter ? ", " : "  ", option->name,
                         option->value ? " " : "", option->value ? option->value : "");
    printf("%s%*s%s\n", left, width < HELP_COLUMN ? HELP_COLUMN - width : 1, "", option->help);
  }
  printf("  -h, --help                      this text\n");
  if (verb->examples != NULL) printf("\nExamples:\n%s\n", verb->examples);
}

static int usage_error(const Verb *verb) {
  fprintf(stderr, "Usage: kiln %s %s\nTry 'kiln %s --help'.\n", verb->name, verb->usage, verb->name);
  return EXIT_USAGE;
}

static bool option_store(const Verb *verb, const Option *option, const char *value) {
  switch (option->kind) {
    case OPTION_FLAG:
      *(bool *)option->target = true;
      return true;
    case OPTION_TEXT:
      *(const char **)option->target = value;
      return true;
    case OPTION_LIST: {
      OptionList *list = option->target;
      if (list->count == sizeof list->items / sizeof list->items[0]) {
        fprintf(stderr, "kiln %s: --%s is given more than %zu times\n", verb->name, option->name, list->count);
        return false;
      }
      list->items[list->count++] = value;
      return true;
    }
    case OPTION_INT: {
      int64_t number;
      if (!parse_int(value, &number) || number < option->minimum || number > option->maximum) {
        fprintf(stderr, "kiln %s: --%s: expected an integer from %lld to %lld, found '%s'\n", verb->name, option->name,
                (long long)option->minimum, (long long)option->maximum, value);
        return false;
      }
      *(int64_t *)option->target = number;
      return true;
    }
    case OPTION_DOUBLE:
      if (parse_double(value, option->target) && isfinite(*(double *)option->target)) return true;
      fprintf(stderr, "kiln %s: --%s: expected a number, found '%s'\n", verb->name, option->name, value);
      return false;
  }
  return false;
}

int options_parse(const Verb *verb, const Option *options, int argc, char **argv, int minimum, int maximum,
                  const char **positional) {
  struct option table[OPTION_MAX];
  char letters[2 * OPTION_MAX + 4] = "h";
  size_t count = 0, used = 1;
  for (const Option *option = options; option->name != NULL; option++) {
    int argument = option->kind == OPTION_FLAG ? no_argument : required_argument;
    table[count++] = (struct option){option->name, argument, NULL, 256 + (int)(option - options)};
    if (option->letter == 0) continue;
    letters[used++] = option->letter;
    if (argument == required_argument) letters[used++] = ':';
  }
  letters[used] = '\0';
  table[count++] = (struct option){"help", no_argument, NULL, 'h'};
  table[count] = (struct option){NULL, 0, NULL, 0};
  optind = 1;
  opterr = 0;
  int choice;
  while ((choice = getopt_long(argc, argv, letters, table, NULL)) != -1) {
    if (choice == 'h') {
      print_help(verb, options);
      return EXIT_OK;
    }
    if (choice == '?') {
      const char *word = argv[optind > 1 ? optind - 1 : 1];
      const char *names[OPTION_MAX];
      for (size_t i = 0; i < count; i++) names[i] = table[i].name;
      const char *near = strncmp(word, "--", 2) == 0 ? nearest_word(word + 2, names, count) : NULL;
      bool known = near != NULL && strcmp(near, word + 2) == 0;
      if (known)
        fprintf(stderr, "kiln %s: %s needs a value\n", verb->name, word);
      else
        fprintf(stderr, "kiln %s: unknown option '%s'%s%s%s\n", verb->name, word, near ? "; did you mean --" : "",
                near ? near : "", near ? "?" : "");
      return usage_error(verb);
    }
    const Option *option = NULL;
    for (const Option *o = options; o->name != NULL && option == NULL; o++)
      if (choice == 256 + (int)(o - options) || (o->letter != 0 && choice == o->letter)) option = o;
    if (!option_store(verb, option, optarg)) return EXIT_USAGE;
  }
  int found = argc - optind;
  if (found < minimum || found > maximum) {
    int limit = found < minimum ? minimum : maximum;
    fprintf(stderr, "kiln %s: expected %s%d argument%s, found %d\n", verb->name,
            minimum == maximum ? ""
            : found < minimum  ? "at least "
                               : "at most ",
            limit, limit == 1 ? "" : "s", found);
    return usage_error(verb);
  }
  for (int i = 0; i < found; i++) positional[i] = argv[optind + i];
  return -1;
}
