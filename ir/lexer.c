#include "lexer.h"

#include <string.h>

#include "base/text.h"

static bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }
static bool is_digit(char c) { return c >= '0' && c <= '9'; }
static bool is_name(char c) { return is_letter(c) || is_digit(c) || c == '.' || c == '-' || c == '/'; }

static void skip_blank(Lexer *lexer) {
  while (lexer->at < lexer->end) {
    const char c = *lexer->at;
    if (c == '\n') {
      lexer->line++;
      lexer->line_begin = lexer->at + 1;
      lexer->token.line_start = true;
    } else if (c == '#') {
      while (lexer->at + 1 < lexer->end && lexer->at[1] != '\n') lexer->at++;
    } else if (c != ' ' && c != '\t' && c != '\r') {
      return;
    }
    lexer->at++;
  }
}

static void take(Lexer *lexer, TokenKind kind, const char *begin, const char *end) {
  lexer->token.kind = kind;
  lexer->token.text = arena_string_n(lexer->arena, begin, (size_t)(end - begin));
  lexer->at = end;
}

static void take_bad(Lexer *lexer, const char *reason) {
  lexer->token.kind = TOKEN_BAD;
  lexer->token.text = reason;
  if (lexer->at < lexer->end && *lexer->at != '\n') lexer->at++;
}

static int hex_value(char c) {
  if (is_digit(c)) return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

/* \uXXXX in front of `at`: a character of the basic plane, not NUL and no surrogate. 0 when it is none. */
static unsigned read_unicode(const char *at, const char *end) {
  if (end - at < 4) return 0;
  unsigned code = 0;
  for (int i = 0; i < 4; i++) {
    const int digit = hex_value(at[i]);
    if (digit < 0) return 0;
    code = code * 16 + (unsigned)digit;
  }
  return code >= 0xD800 && code <= 0xDFFF ? 0 : code;
}

static void add_unicode(Text *text, unsigned code) {
  char bytes[3];
  size_t count = 1;
  if (code < 0x80) {
    bytes[0] = (char)code;
  } else if (code < 0x800) {
    bytes[0] = (char)(0xC0 | code >> 6);
    bytes[1] = (char)(0x80 | (code & 0x3F));
    count = 2;
  } else {
    bytes[0] = (char)(0xE0 | code >> 12);
    bytes[1] = (char)(0x80 | (code >> 6 & 0x3F));
    bytes[2] = (char)(0x80 | (code & 0x3F));
    count = 3;
  }
  text_add_n(text, bytes, count);
}

/* A string as in JSON; `at` stands on the opening quote. */
static void take_string(Lexer *lexer, TokenKind kind) {
  static const char escapes[] = "\"\"\\\\//b\bf\fn\nr\rt\t"; /* letter, byte */
  Text text;
  text_init(&text, lexer->arena);
  const char *at = lexer->at + 1;
  while (at < lexer->end && *at != '"') {
    if ((unsigned char)*at < 0x20) {
      lexer->at = at;
      take_bad(lexer, *at == '\n' ? "the string does not end on its line" : "control characters must be escaped");
      return;
    }
    if (*at != '\\') {
      text_add_n(&text, at++, 1);
      continue;
    }
    const char letter = at + 1 < lexer->end ? at[1] : '\0';
    const unsigned code = letter == 'u' ? read_unicode(at + 2, lexer->end) : 0;
    const char *escape = NULL;
    for (size_t i = 0; i + 1 < sizeof escapes && !escape; i += 2) {
      if (escapes[i] == letter) escape = &escapes[i];
    }
    if (code) {
      add_unicode(&text, code);
      at += 6;
    } else if (escape) {
      text_add_n(&text, escape + 1, 1);
      at += 2;
    } else {
      lexer->at = at;
      take_bad(lexer, "unknown escape in a string");
      return;
    }
  }
  if (at == lexer->end) {
    lexer->at = at;
    take_bad(lexer, "the string does not end");
    return;
  }
  lexer->token.kind = kind;
  lexer->token.text = text.data;
  lexer->token.quoted = true;
  lexer->at = at + 1;
}

static const char *name_end(const Lexer *lexer, const char *at) {
  while (at < lexer->end && is_name(*at)) at++;
  return at;
}

static const char *number_end(const Lexer *lexer, const char *at) {
  char before = '\0';
  while (at < lexer->end) {
    const bool sign = (*at == '-' || *at == '+') && (before == '\0' || before == 'e' || before == 'E');
    if (!sign && !is_digit(*at) && !is_letter(*at) && *at != '.') break;
    before = *at++;
  }
  return at;
}

void lexer_next(Lexer *lexer) {
  lexer->token = (Token){.kind = TOKEN_END};
  skip_blank(lexer);
  lexer->token.location = (Location){lexer->file, lexer->line, (uint32_t)(lexer->at - lexer->line_begin) + 1};
  if (lexer->at == lexer->end) {
    lexer->token.line_start = true;
    return;
  }
  const char c = *lexer->at;
  if (is_letter(c)) {
    take(lexer, TOKEN_WORD, lexer->at, name_end(lexer, lexer->at));
  } else if (is_digit(c) || c == '-' || c == '+' || c == '.') {
    take(lexer, TOKEN_NUMBER, lexer->at, number_end(lexer, lexer->at));
  } else if (c == '"') {
    take_string(lexer, TOKEN_STRING);
  } else if (c == '%') {
    lexer->at++;
    const char *end = name_end(lexer, lexer->at);
    if (lexer->at < lexer->end && *lexer->at == '"') {
      take_string(lexer, TOKEN_VALUE);
    } else if (end > lexer->at) {
      take(lexer, TOKEN_VALUE, lexer->at, end);
    } else {
      take_bad(lexer, "a name or an id must follow '%'");
    }
  } else if (c != '\0' && strchr("{}[]()=,:@", c)) {
    lexer->token.kind = TOKEN_SIGN;
    lexer->token.sign = c;
    lexer->at++;
  } else {
    take_bad(lexer, arena_format(lexer->arena, "unexpected character '%c'", c ? c : '0'));
    if ((unsigned char)c < 0x20 || (unsigned char)c >= 0x7F) {
      lexer->token.text = arena_format(lexer->arena, "unexpected byte 0x%02x", (unsigned)(unsigned char)c);
    }
  }
}

void lexer_init(Lexer *lexer, Arena *arena, const char *file, const char *source, size_t size) {
  *lexer = (Lexer){.arena = arena, .file = file, .at = source, .end = source + size, .line_begin = source, .line = 1};
  lexer_next(lexer);
}

const char *token_describe(const Lexer *lexer, const Token *token) {
  switch (token->kind) {
    case TOKEN_END:
      return "the end of the file";
    case TOKEN_SIGN:
      return arena_format(lexer->arena, "'%c'", token->sign);
    case TOKEN_VALUE:
      return arena_format(lexer->arena, "value '%%%.80s'", token->text);
    case TOKEN_STRING:
      return arena_format(lexer->arena, "string \"%.80s\"", token->text);
    case TOKEN_WORD:
    case TOKEN_NUMBER:
      return arena_format(lexer->arena, "'%.80s'", token->text);
    case TOKEN_BAD:
      break;
  }
  return token->text;
}
