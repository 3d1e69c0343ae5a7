"""What others wrote, as part of one line of an explanation. Knows no answer and no program."""


def shown(text: str, width: int = 60) -> str:
    """A text as part of one line of at most `width` characters: no control characters, nothing that cannot be written."""
    start = " ".join(text[: 4 * width].split())
    safe = "".join(character if character.isprintable() else ascii(character)[1:-1] for character in start)
    return safe if len(safe) <= width and len(text) <= 4 * width else f"{safe[:width]}…"
