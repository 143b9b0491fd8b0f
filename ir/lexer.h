/* Tokens of the graph's text form (ir/IR.md, "Tokens"). */
#ifndef KILN_IR_LEXER_H
#define KILN_IR_LEXER_H

#include "base/arena.h"
#include "base/diag.h"

typedef enum TokenKind {
  TOKEN_END,
  TOKEN_WORD,   /* conv2d, layer1.0.conv1 */
  TOKEN_NUMBER, /* 3, -1, 1e-05, -inf: what follows a digit or sign, not yet checked */
  TOKEN_STRING, /* "a b", decoded */
  TOKEN_VALUE,  /* %conv1, %"a b", %12: `text` without the percent sign, decoded */
  TOKEN_SIGN,   /* one of { } [ ] ( ) = , : @ */
  TOKEN_BAD     /* `text` says why */
} TokenKind;

typedef struct Token {
  TokenKind kind;
  const char *text; /* in the lexer's arena; NULL for signs */
  char sign;
  bool quoted;     /* VALUE: written with quotes, so that digits are a name */
  bool line_start; /* the first of its line: ends the statement before it */
  Location location;
} Token;

typedef struct Lexer {
  Arena *arena;
  const char *file, *at, *end, *line_begin;
  uint32_t line;
  Token token; /* the current one */
} Lexer;

/* `source` is valid UTF-8 and need not be terminated. The first token is current afterwards. */
void lexer_init(Lexer *lexer, Arena *arena, const char *file, const char *source, size_t size);
/* Makes the next token the current one; after the last it stays TOKEN_END. */
void lexer_next(Lexer *lexer);
/* For messages: "'conv2d'", "the end of the file". In the lexer's arena. */
const char *token_describe(const Lexer *lexer, const Token *token);

#endif
