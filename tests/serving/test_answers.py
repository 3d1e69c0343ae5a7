"""Stop texts, in a text that arrives in parts."""

from hypothesis import given
from hypothesis import strategies as st

from arbitrage_cli.serving.answers import UntilStop

words = st.text(alphabet="ab", max_size=4)


@given(st.lists(words, max_size=6), st.lists(words.filter(bool), max_size=3))
def test_a_text_ends_before_the_first_whole_stop_text(parts: list[str], stops: list[str]) -> None:
    """However it is divided; nothing is shown that may belong to one, and nothing is lost without one."""
    until = UntilStop(tuple(stops))
    shown = ""
    for part in parts:
        shown += until.add(part)
    shown += until.finish()
    whole = "".join(parts)
    places = [(whole.index(stop) + len(stop), whole.index(stop)) for stop in stops if stop in whole]
    assert (shown, until.is_stopped) == (whole[: min(places)[1]] if places else whole, bool(places))
