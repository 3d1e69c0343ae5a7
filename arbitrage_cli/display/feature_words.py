"""The features of a step in words. A name is made of parts, and so are its words; some have words of their own."""

_MEASURES = {"logprob": "probability", "entropy": "entropy", "margin": "margin"}
_PLACES = {
    "sum": "joint {}",
    "mean": "mean {}",
    "first": "{} of the first token",
    "last": "{} of the last token",
    "min": "lowest {}",
    "2nd_min": "second lowest {}",
    "max": "highest {}",
    "2nd_max": "second highest {}",
    "q10": "10% quantile of {}",
    "q25": "25% quantile of {}",
    "q50": "median {}",
    "q75": "75% quantile of {}",
    "q90": "90% quantile of {}",
}
_OF = {
    "digit_": "of digits",
    "operator_": "of operators",
    "previous_draft_": "in the step before",
    "drafts_": "in all steps before",
}
_OWN = {
    "least_likely_position": "place of the least likely token",
    "tokens": "tokens of the step",
    "ends_solution": "ends the solution",
    "cut_off": "was cut off",
    "has_box": "has a boxed answer",
    "is_thought": "is a thought",
    "longest_number": "digits of its longest number",
    "unseen_numbers": "numbers seen nowhere before",
    "lines": "line feeds",
    "last_equation_wrong": "its last equation is wrong",
    "equation_error": "largest error of an equation",
    "wrong_equations_before": "wrong equations before it",
    "unknown_operands": "operands neither given nor computed",
    "overused_operands": "operands used too often",
    "unused_numbers": "numbers not used yet",
    "unused_numbers_at_end": "numbers not used at the end",
    "problem_length": "length of the problem",
    "problem_numbers": "numbers in the problem",
    "problem_longest_number": "digits of the problem's longest number",
    "position": "number of steps before it",
    "tokens_before": "tokens before it",
    "previous_tokens": "tokens of the step before",
}


def feature_words(name: str) -> str:
    """What a feature is, such as `lowest probability of digits`."""
    if name in _OWN:
        return _OWN[name]
    for prefix, of in _OF.items():
        if name.startswith(prefix):
            return f"{feature_words(name.removeprefix(prefix))} {of}"
    measure, _, place = name.partition("_")
    return _PLACES[place].format(_MEASURES[measure]) if measure in _MEASURES else name.replace("_", " ")
