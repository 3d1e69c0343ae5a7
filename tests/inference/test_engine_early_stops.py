"""Steps that are stopped early: where their numbers are computed, and what is left of them."""

from hash_language import HashBackend, Recording
from writing import PROBLEM, ByteReciter, assert_equal, finish, foreign, keep, make_engine, new_engine, new_trace, write

from arbitrage_cli.arbitrage import EarlyStop, WriteStep
from arbitrage_cli.inference.engine import Engine
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.types import Step, Trace


def stop_at(*places: int, number: float = 1.0) -> EarlyStop:
    """Stops at the first of these numbers of tokens, if the number is above 0.5."""
    return EarlyStop(lambda trace, beginning: number, 0.5, lambda num_tokens: num_tokens in places)


def write_until(engine: Engine, trace: Trace, early_stop: EarlyStop) -> Step:
    engine.start(0, WriteStep("draft", trace, early_stop=early_stop))
    return finish(engine)[0]


def test_a_bad_step_is_stopped_when_it_is_due() -> None:
    whole = write(new_engine(HashBackend("m"), keep_token_stats=True), new_trace())
    step = write_until(new_engine(HashBackend("m"), keep_token_stats=True), new_trace(), stop_at(2, 3))
    assert (step.stop, step.num_tokens) == ("early", 2)
    assert whole.text.startswith(step.text)
    assert step.known_token_stats.log_probabilities == whole.known_token_stats.log_probabilities[:2]


def test_a_good_step_is_finished() -> None:
    """Computing its number changes neither text nor statistics. A tie is not above tau."""
    whole = write(new_engine(HashBackend("m"), keep_token_stats=True), new_trace())
    seen: list[Step] = []

    def look(trace: Trace, beginning: Step) -> float:
        seen.append(beginning)
        return 0.5

    watch = EarlyStop(look, 0.5, lambda num_tokens: True)
    step = write_until(new_engine(HashBackend("m"), keep_token_stats=True), new_trace(), watch)
    assert_equal(step, whole)
    assert [beginning.num_tokens for beginning in seen] == list(range(1, whole.num_tokens))
    assert all(whole.text.startswith(beginning.text) for beginning in seen)


def test_a_step_that_has_ended_is_not_stopped() -> None:
    whole = write(new_engine(HashBackend("m")), new_trace())
    step = write_until(new_engine(HashBackend("m")), new_trace(), stop_at(whole.num_tokens))
    assert (step.stop, step.text) == (whole.stop, whole.text)


def test_no_step_is_stopped_within_a_character() -> None:
    """Half a character would give another number than the step that ends there."""
    engine = new_engine(ByteReciter("a\u20acb\n\n".encode()))
    step = write_until(engine, new_trace(), stop_at(2, 3, 4))
    assert (step.text, step.num_tokens) == ("a\u20ac", 4)


def test_after_a_stop_the_model_goes_on_from_what_was_kept() -> None:
    backend = Recording(HashBackend("m"))
    engine, trace = new_engine(backend), new_trace()
    write_until(engine, trace, stop_at(4))
    keep(trace, foreign("abc\n\n"))
    fresh = new_engine(HashBackend("m"))
    assert write(engine, trace).text == write(fresh, trace).text


def test_the_routers_time_is_not_the_models() -> None:
    now = 0.0

    def clock() -> float:
        return now

    def look(trace: Trace, beginning: Step) -> float:
        nonlocal now
        now += 100.0
        return 0.0

    engine = make_engine("draft", HashBackend("m"), Sampler(), instructions="", clock=clock)
    engine.open(0, PROBLEM)
    assert write_until(engine, new_trace(), EarlyStop(look, 0.5, lambda num_tokens: True)).seconds == 0.0
    assert now > 0
