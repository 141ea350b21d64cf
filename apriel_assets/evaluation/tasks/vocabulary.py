"""The words that procedural tasks are written in: one list, from which the bundled tokenizer is built."""

# Without "a" and "i": those are English words, and a verifier must tell an item from a word.
LETTERS: tuple[str, ...] = tuple("bcdefghjklmnopqrstuvwxyz")
NUMBERS: tuple[str, ...] = tuple(str(number) for number in range(25))
OPERATORS: tuple[str, ...] = ("+", "-", "*")
PUNCTUATION: tuple[str, ...] = ("=", ",", ";", ":", ".", "?")

# Words that may stand around an answer without changing it. "not" is no such word.
FILLERS: tuple[str, ...] = ("answer", "result", "so", "the", "is", "gives", "we", "get", "and", "then")
PROMPT_WORDS: tuple[str, ...] = (
    *("recall", "ask", "copy", "start", "at", "pick", "item"),
    *("compute", "left", "to", "right", "mod", "let", "find"),
)

WORDS: tuple[str, ...] = (*PUNCTUATION, *OPERATORS, *NUMBERS, *LETTERS, *FILLERS, *PROMPT_WORDS)
assert len(set(WORDS)) == len(WORDS)
