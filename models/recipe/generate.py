"""Grade-school arithmetic problems with solutions, for training and testing the built-in models.

The solution follows from the question alone: one line of working per step, and a last line `The answer is \\boxed{...}.` A step after
right steps is therefore right only if it equals the solution's step. Only the wording of questions varies.

    python generate.py test > builtin.jsonl      # 100 problems per level
    python generate.py dev > builtin-dev.jsonl
    python generate.py train 20                  # a sample of training problems
"""

import json
import random
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from itertools import islice

LEVELS = (1, 2, 3, 4, 5)
LEVEL_WEIGHTS = (2, 3, 4, 4, 4)  # of training problems by level
HELD_OUT_SEEDS = {"test": "arbitrage held-out test", "dev": "arbitrage held-out dev"}
HELD_OUT_PER_LEVEL = 100
MAX_STEPS = 9

Number = int | Decimal


@dataclass(frozen=True, slots=True)
class Problem:
    """A question, the lines of its working, and the answer as in the box."""

    question: str
    steps: tuple[str, ...]
    answer: str
    level: int
    family: str

    @property
    def solution(self) -> str:
        return "\n\n".join(self.steps)

    @property
    def key(self) -> str:
        """The wording with its numbers, without names and things. Held-out and training problems never share a key."""
        return _INTERCHANGEABLE.sub("_", self.question)


# --- numbers by level

COUNTS = {1: (2, 9), 2: (2, 9), 3: (3, 12), 4: (11, 40), 5: (12, 99)}
PRICES = {1: (2, 12), 2: (3, 30), 3: (11, 99), 4: (21, 150), 5: (101, 999)}
AMOUNTS = {1: (5, 60), 2: (20, 200), 3: (100, 999), 4: (1000, 9999), 5: (10000, 99999)}
DIVISORS = {1: (2, 5), 2: (2, 9), 3: (2, 9), 4: (3, 12), 5: (6, 25)}
TAILS = {1: (0, 0), 2: (0, 1), 3: (1, 2), 4: (1, 3), 5: (2, 4)}

PEOPLE = (
    *(
        (name, "she", "her")
        for name in [
            "Anna",
            "Mia",
            "Lena",
            "Sofia",
            "Emma",
            "Nora",
            "Zoe",
            "Ruth",
            "Ida",
            "Priya",
            "Carla",
            "Wendy",
            "Natalia",
            "Janet",
            "Olga",
        ]
    ),
    *(
        (name, "he", "his")
        for name in [
            "Tom",
            "Ben",
            "Omar",
            "Leo",
            "Paul",
            "Ivan",
            "Hugo",
            "Sam",
            "Ravi",
            "Carlos",
            "Jack",
            "Peter",
            "Josh",
            "Finn",
            "Mark",
        ]
    ),
)
THINGS = [
    "apples",
    "oranges",
    "pears",
    "marbles",
    "stickers",
    "books",
    "pencils",
    "cards",
    "shells",
    "stamps",
    "coins",
    "cookies",
    "eggs",
    "balloons",
    "beads",
    "buttons",
    "toys",
    "roses",
    "tomatoes",
    "candles",
    "cups",
    "bottles",
    "plates",
    "bricks",
    "tickets",
    "notebooks",
    "clips",
    "stones",
    "peaches",
    "muffins",
]
_INTERCHANGEABLE = re.compile(
    r"\b(?:" + "|".join([*(word for person in PEOPLE for word in person), *THINGS]) + r")\b", re.IGNORECASE
)
COLOURS = ["red", "blue", "green", "yellow", "white", "black"]
SHOPS = ("the market", "the shop", "a store", "the fair")
PLACES = ("bakery", "factory", "farm", "workshop", "school", "library")


class Draw:
    """The random choices for one problem at one level."""

    def __init__(self, rng: random.Random, level: int) -> None:
        self.rng = rng
        self.level = level
        self.name, self.they, self.their = rng.choice(PEOPLE)
        self.things = rng.choice(THINGS)

    def between(self, low: int, high: int) -> int:
        return self.rng.randint(low, high)

    def pick(self, *options: str) -> str:
        return self.rng.choice(options)

    def count(self) -> int:
        return self.between(*COUNTS[self.level])

    def price(self) -> Number:
        """Return a price: an integer, or sometimes a multiple of a quarter from level 4 on."""
        whole = self.between(*PRICES[self.level])
        if self.level >= 4 and whole < 200 and self.rng.random() < 0.25:
            return Decimal(whole) + Decimal(self.pick("0.5", "0.25", "0.75") if self.level == 5 else "0.5")
        return whole

    def amount(self) -> int:
        return self.between(*AMOUNTS[self.level])

    def divisor(self) -> int:
        return self.between(*DIVISORS[self.level])

    def below(self, number: Number) -> int:
        return self.between(1, max(1, int(number) - 1))

    def length(self, low: int, high: int) -> int:
        """Return the length of a chain: `low` at level 1, `high` at level 5."""
        middle = low + (high - low) * (self.level - 1) / 4
        return max(low, min(high, round(middle + self.rng.uniform(-0.5, 0.5))))

    def other(self) -> tuple[str, str, str]:
        return self.rng.choice([person for person in PEOPLE if person[0] != self.name])

    def other_things(self) -> str:
        return self.rng.choice([things for things in THINGS if things != self.things])


class Working:
    """The lines of a solution. Each operation adds a line and returns its result."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def _line(self, label: str, calculation: str) -> None:
        self.lines.append(f"{label}: {calculation}" if label else calculation)

    def plus(self, left: Number, right: Number, label: str = "") -> Number:
        result = left + right
        self._line(label, f"{text(left)} + {text(right)} = {text(result)}")
        return result

    def minus(self, left: Number, right: Number, label: str = "") -> Number:
        result = left - right
        self._line(label, f"{text(left)} - {text(right)} = {text(result)}")
        return result

    def times(self, left: Number, right: Number, label: str = "") -> Number:
        """Multiply; if both numbers have several digits, in parts on one line."""
        result = left * right
        middle = ""
        terms = parts(right)
        if len(terms) > 1 and len(parts(left)) > 1:
            products = [left * term for term in terms]
            middle = " + ".join(f"{text(left)} * {text(term)}" for term in terms) + " = "
            middle += " + ".join(map(text, products)) + " = "
            if len(terms) > 2:
                middle += f"{text(products[0] + products[1])} + {text(products[2])} = "
        self._line(label, f"{text(left)} * {text(right)} = {middle}{text(result)}")
        return result

    def over(self, left: Number, right: Number, label: str = "") -> Number:
        result = Decimal(left) / right
        whole = int(result) if result == int(result) else result
        self._line(label, f"{text(left)} / {text(right)} = {text(whole)}")
        return whole


def parts(factor: Number) -> list[Number]:
    """Split 37 into 30 and 7, 12.5 into 10, 2 and 0.5; return nothing for a single digit."""
    whole = int(factor)
    terms: list[Number] = [int(digit) * 10**place for place, digit in enumerate(reversed(str(whole))) if digit != "0"][::-1]
    return [*terms, factor - whole] if factor != whole else terms


def text(number: Number) -> str:
    """Return the number without trailing zeros."""
    if isinstance(number, int):
        return str(number)
    whole = number.normalize()
    return str(whole.quantize(Decimal(1))) if whole == whole.to_integral() else format(whole, "f")


Told = tuple[str, Working, Number]  # the question, its working, the answer
Family = Callable[[Draw], Told]


# --- families without a story


def expression(draw: Draw) -> Told:
    """One line of arithmetic with parentheses, in many notations."""
    working = Working()
    written, value = _tree(draw, draw.length(1, 5), working, top=True)
    if draw.rng.random() < 0.3:
        written = written.replace(" * ", draw.pick(" x ", " × ", "*", " times ")).replace(
            " / ", draw.pick(" ÷ ", "/", " / ")
        )
    if draw.rng.random() < 0.15:
        written = written.replace(" ", "") if " times " not in written else written
    ask = draw.pick(
        "What is {}?", "What is {}?", "Calculate {}.", "Compute {}.", "{} = ?", "Work out {}.", "Evaluate {}.", "{}",
        "How much is {}?", "what's {}", "Find the value of {}.", "Solve {}.", "{} =", "Please calculate {}", "What does {} equal?",
    )  # fmt: skip
    return ask.format(written), working, value


def _tree(draw: Draw, num_operations: int, working: Working, *, top: bool = False) -> tuple[str, Number]:
    """Return a random expression with this many operations, and its value. Lines are in the order of evaluation."""
    value: Number
    if num_operations == 0:
        value = draw.between(*PRICES[draw.level])
        return str(value), value
    left_operations = draw.between(0, num_operations - 1)
    if num_operations > 1 and draw.rng.random() < 0.5:
        left_operations = num_operations - 1  # most users type chains
    left, left_value = _tree(draw, left_operations, working)
    num_lines = len(working.lines)
    right, right_value = _tree(draw, num_operations - 1 - left_operations, working)
    sign = _operator(draw, left_value, right_value)
    if sign == "/":
        del working.lines[num_lines:]  # the divisor replaces the right side
        right_value = draw.rng.choice(_divisors(draw, left_value))
        right = str(right_value)
    operate = {"+": working.plus, "-": working.minus, "*": working.times, "/": working.over}[sign]
    value = operate(left_value, right_value)
    if sign in "*/":
        left = f"({left})" if re.search(r" [+-] ", _outer(left)) else left
        right = f"({right})" if " " in right else right
    elif re.search(r" [+-] ", _outer(right)):  # also after a plus, because evaluation is from left to right
        right = f"({right})"
    return f"{left} {sign} {right}", value


def _outer(written: str) -> str:
    """Remove all parentheses with their content."""
    depth, outer = 0, []
    for character in written:
        depth += (character == "(") - (character == ")")
        outer.append(character if depth == 0 else ".")
    return "".join(outer)


def _operator(draw: Draw, left: Number, right: Number) -> str:
    signs = ["+", "+"]
    if left > right:
        signs += ["-", "-"]
    limit = {1: 100, 2: 400, 3: 3000, 4: 20000, 5: 99999}[draw.level]
    if left * right <= limit and (right < 100 or left < 10) and right > 1:
        signs += ["*", "*"]
    if _divisors(draw, left):
        signs.append("/")
    return draw.rng.choice(signs)


def _divisors(draw: Draw, number: Number) -> list[int]:
    """Return divisors of the level's size with an integer quotient."""
    low, high = DIVISORS[draw.level]
    return [divisor for divisor in range(low, high + 1) if number % divisor == 0 and number > divisor]


def words(draw: Draw) -> Told:
    """One or two operations in words."""
    working = Working()
    kind = draw.between(0, 6)
    a, b = draw.between(*AMOUNTS[draw.level]), draw.between(*AMOUNTS[draw.level])
    c, d = draw.between(*PRICES[draw.level]), draw.count()
    if kind == 0:
        value = working.plus(a, b)
        return (
            draw.pick("What is the sum of {} and {}?", "Add {} and {}.", "What is {} plus {}?").format(a, b),
            working,
            value,
        )
    if kind == 1:
        a, b = max(a, b) + 1, min(a, b)
        value = working.minus(a, b)
        ask = draw.pick("What is {} minus {}?", "What is the difference between {} and {}?", "How much more is {} than {}?")
        return ask.format(a, b), working, value
    if kind == 2:
        value = working.times(c, d)
        return (
            draw.pick("What is {} times {}?", "Multiply {} by {}.", "What is the product of {} and {}?").format(c, d),
            working,
            value,
        )
    if kind == 3:
        divisor = draw.divisor()
        value = working.over(c * divisor, divisor)
        return draw.pick("What is {} divided by {}?", "Divide {} by {}.").format(c * divisor, divisor), working, value
    if kind == 4:
        value = working.plus(working.times(c, d), a)
        return (
            draw.pick("Multiply {} by {} and then add {}.", "What is {} times {} plus {}?").format(c, d, a),
            working,
            value,
        )
    if kind == 5:
        divisor = draw.divisor()
        value = working.minus(a * divisor, b := draw.below(a * divisor))
        value = working.plus(value, c)
        return f"Start with {a * divisor}, take away {b}, then add {c}. What do you get?", working, value
    value = working.times(working.plus(c, draw_right := draw.count()), d)
    return f"Add {c} and {draw_right}, then multiply the result by {d}.", working, value


def unknown_number(draw: Draw) -> Told:
    """An unknown number, found by working backwards."""
    working = Working()
    value, factor, more = draw.count(), draw.divisor(), draw.between(*PRICES[draw.level])
    total = value * factor + more
    ask = draw.pick(
        "{name} thinks of a number, multiplies it by {factor} and adds {more}. The result is {total}. What is the number?",
        "I think of a number. {factor} times the number plus {more} is {total}. What is my number?",
        "Solve for x: {factor} * x + {more} = {total}",
        "If {factor}x + {more} = {total}, what is x?",
    )
    rest = working.minus(total, more)
    result = working.over(rest, factor)
    return ask.format(name=draw.name, factor=factor, more=more, total=total), working, result


def average(draw: Draw) -> Told:
    working = Working()
    number = draw.length(2, 6)
    low, high = PRICES[draw.level]
    values = [draw.between(low, high) for _ in range(number - 1)]
    wanted = draw.between(low, high) * number
    last = wanted - sum(values)
    if last <= 0:
        last = -(-(-last + 1) // number) * number + last
    values.append(last)
    total: Number = values[0]
    for value in values[1:]:
        total = working.plus(total, value)
    result = working.over(total, number, "Average")
    listed = ", ".join(map(str, values[:-1])) + f" and {values[-1]}"
    ask = draw.pick(
        "What is the average of {}?",
        "Find the mean of {}.",
        f"{draw.name} scored {{}} points in {number} games. What was {draw.their} average score?",
        f"On {number} days {draw.name} sold {{}} {draw.things}. How many did {draw.they} sell on average a day?",
    )
    return ask.format(listed), working, result


def percentage(draw: Draw) -> Told:
    """A percentage of a number, and the result of adding or subtracting it."""
    working = Working()
    easy = (10, 20, 25, 50)
    percent = draw.rng.choice(easy) if draw.level <= 2 else 5 * draw.between(1, 19)
    step = {50: 2, 25: 4, 75: 4, 20: 5, 10: 10}.get(percent, 20)
    low, high = {1: (2, 10), 2: (3, 20), 3: (5, 40), 4: (10, 90), 5: (40, 400)}[draw.level]
    whole = step * draw.between(low, high)
    kind = draw.between(0, 3)
    portion = working.over(working.times(whole, percent), 100, f"{percent}%")
    if kind == 0:
        ask = draw.pick(
            f"What is {percent}% of {whole}?",
            f"How much is {percent} percent of {whole}?",
            f"Calculate {percent}% of {whole}.",
        )
        return ask, working, portion
    if kind == 1:
        result = working.minus(whole, portion, "New price")
        ask = draw.pick(
            f"A coat costs {whole} dollars. It is now {percent}% off. What does it cost now?",
            f"{draw.name} buys a bike for {whole} dollars with a discount of {percent}%. How much does {draw.they} pay?",
            f"The price of a phone is {whole} dollars and drops by {percent}%. What is the new price?",
        )
        return ask, working, result
    if kind == 2:
        result = working.plus(whole, portion, "New total")
        ask = draw.pick(
            f"{draw.name} earns {whole} dollars a week and gets a raise of {percent}%. How much does {draw.they} earn now?",
            f"A town had {whole} people and grew by {percent}%. How many people live there now?",
            f"The rent was {whole} dollars and goes up by {percent}%. What is the new rent?",
        )
        return ask, working, result
    result = working.minus(whole, portion, "The others")
    ask = draw.pick(
        f"A {draw.pick(*PLACES)} has {whole} {draw.things}. {percent}% of them are red. How many are not red?",
        f"Of {whole} students {percent}% come by bus. How many do not come by bus?",
    )
    return ask, working, result


# --- stories about what someone has, which may continue


def chain(draw: Draw) -> Told:
    """Gains and losses, one after the other."""
    working = Working()
    start = draw.amount()
    opening = draw.pick(
        f"{draw.name} has {start} {draw.things}.",
        f"{draw.name} had {start} {draw.things} at first.",
        f"There are {start} {draw.things} in {draw.name}'s box.",
    )
    return _go_on(draw, opening, working, start, draw.length(1, 4) + 1)


def packs(draw: Draw) -> Told:
    """Several packs of several things."""
    working = Working()
    number, size = draw.count(), draw.between(*PRICES[min(draw.level, 4)])
    opening = draw.pick(
        f"{draw.name} buys {number} boxes with {size} {draw.things} each.",
        f"{draw.name} has {number} bags of {draw.things}, with {size} in each bag.",
        f"There are {number} shelves and {size} {draw.things} on each. All of them are {draw.name}'s.",
    )
    total = working.times(size, number, "In all")
    return _go_on(draw, opening, working, total, _tail(draw))


def wages(draw: Draw) -> Told:
    """Pay per hour."""
    working = Working()
    hours, pay, days = draw.between(2, 9), draw.price(), draw.count()
    opening = draw.pick(
        f"{draw.name} works {hours} hours a day for {text(pay)} dollars an hour and works {days} days.",
        f"For {days} days {draw.name} works {hours} hours each day. {draw.they.capitalize()} earns {text(pay)} dollars per hour.",
    )
    total_hours = working.times(days, hours, "Hours")
    if draw.level <= 2:
        earned = working.times(total_hours, pay, "Pay") if pay < 10 else working.times(pay, total_hours, "Pay")
    else:
        earned = working.times(pay, total_hours, "Pay")
    return _go_on(draw, opening, working, earned, _tail(draw), money=True)


def collection(draw: Draw) -> Told:
    working = Working()
    kinds = draw.length(2, 4)
    colours = draw.rng.sample(COLOURS, kinds)
    numbers = [draw.amount() for _ in colours]
    listed = ", ".join(f"{number} {colour}" for number, colour in zip(numbers[:-1], colours[:-1], strict=True))
    opening = draw.pick(
        f"{draw.name} has {listed} and {numbers[-1]} {colours[-1]} {draw.things}.",
        f"In {draw.name}'s bag there are {listed} and {numbers[-1]} {colours[-1]} {draw.things}.",
    )
    total: Number = numbers[0]
    for number in numbers[1:]:
        total = working.plus(total, number, "In all")
    return _go_on(draw, opening, working, total, _tail(draw))


def selling(draw: Draw) -> Told:
    """Things that are made, partly kept, and otherwise sold."""
    working = Working()
    made = draw.between(*AMOUNTS[min(draw.level, 3)])
    eaten, baked = draw.below(made // 3 + 2), draw.below(made // 3 + 2)
    price = draw.between(2, 9) if draw.level <= 3 else draw.between(11, 49)
    opening = draw.pick(
        f"{draw.name} picks {made} {draw.things} a day. {draw.they.capitalize()} keeps {eaten}, gives {baked} to a friend and sells "
        f"the rest for {price} dollars each.",
        f"{draw.name} makes {made} {draw.things}, gives away {eaten} and loses {baked}. {draw.they.capitalize()} sells the others at "
        f"{price} dollars a piece.",
    )
    left = working.minus(working.minus(made, eaten), baked, "Left")
    earned = working.times(left, price, "Earned")
    return _go_on(draw, opening, working, earned, _tail(draw), money=True)


def _tail(draw: Draw) -> int:
    return draw.between(*TAILS[draw.level])


def _go_on(draw: Draw, opening: str, working: Working, value: Number, events: int, *, money: bool = False) -> Told:
    """Continue the story of what someone has, and ask for the final number."""
    things = "dollars" if money else draw.things
    sentences = [opening]
    for _ in range(min(events, MAX_STEPS - 1 - len(working.lines))):
        sentence, value = _event(draw, working, value, things, money=money)
        sentences.append(sentence)
    if money:
        ask = draw.pick(f"How much money does {draw.name} have now?", f"How many dollars does {draw.name} have in the end?")
    else:
        ask = draw.pick(
            f"How many {things} does {draw.name} have now?",
            f"How many {things} are there in the end?",
            f"How many {things} does {draw.they} have in all?",
            f"How many {things} are left?",
        )
    return " ".join([*sentences, ask]), working, value


def _event(draw: Draw, working: Working, value: Number, things: str, *, money: bool) -> tuple[str, Number]:
    friend = draw.other()[0]
    he = draw.they.capitalize()
    kind = draw.rng.random()
    divisors = _divisors(draw, value)
    if divisors and kind < 0.15:
        divisor = draw.rng.choice(divisors)
        sentence = draw.pick(
            f"{he} shares them equally among {divisor} friends and looks at the share of one of them.",
            f"Then {draw.they} keeps only one of {divisor} equal parts.",
        )
        return sentence, working.over(value, divisor, "One part")
    factor = draw.between(2, 3 if draw.level < 4 else 9)
    if kind < 0.3 and value * factor < 100000:
        word = {2: "doubles", 3: "triples"}.get(factor)
        sentence = (
            draw.pick(f"Then the number of {things} {word}.", f"{friend} {word} that number.")
            if word
            else f"Then the number becomes {factor} times as large."
        )
        return sentence, working.times(value, factor, "Then")
    if kind < 0.62 and value > 2:
        given = draw.below(value)
        spending = (f"{he} spends {given} dollars.", f"{he} pays {given} dollars for a trip.", f"{he} uses {given} dollars.")
        losing = (
            f"{he} loses {given} of them.",
            f"{he} sells {given}.",
            f"{he} eats {given} of them.",
            f"{given} are used.",
        )
        sentence = draw.pick(
            f"{he} gives {given} to {friend}.",
            f"Then {draw.they} gives away {given}.",
            *(spending if money else losing),
        )
        return sentence, working.minus(value, given, "Left")
    more = draw.amount() if draw.level < 5 or draw.rng.random() < 0.5 else draw.between(*AMOUNTS[4])
    sentence = draw.pick(
        f"{friend} gives {draw.name} {more} more.",
        f"Then {draw.they} gets {more} more.",
        f"{he} earns another {more} dollars."
        if money
        else draw.pick(f"{he} finds {more} {things}.", f"{he} buys {more} more."),
    )
    return sentence, working.plus(value, more, "Then")


# --- other stories


def change(draw: Draw) -> Told:
    """The change after a purchase."""
    working = Working()
    number, price = draw.count(), draw.price()
    cost = working.times(price, number, "Cost")
    note = next(note for note in (20, 50, 100, 200, 500, 1000, 5000, 10000, 50000, 100000) if note > cost)
    back = working.minus(note, cost, "Change")
    ask = draw.pick(
        f"{draw.name} buys {number} {draw.things} at {text(price)} dollars each and pays with {note} dollars. How much change does {draw.they} get?",
        f"{draw.name} had {note} dollars. At {draw.pick(*SHOPS)} {draw.they} bought {number} {draw.things} for {text(price)} dollars each. How much money is left?",
        f"If one of {number} {draw.things} costs {text(price)} dollars, how much remains of {note} dollars after buying all of them?",
    )
    return ask, working, back


def shopping(draw: Draw) -> Told:
    """Several kinds of things, perhaps with a voucher."""
    working = Working()
    kinds = draw.length(2, 3)
    things = draw.rng.sample(THINGS, kinds)
    orders = [
        (draw.count(), draw.price() if index == 0 else draw.between(*PRICES[min(draw.level, 4)])) for index in range(kinds)
    ]
    costs = [working.times(price, number, thing.capitalize()) for (number, price), thing in zip(orders, things, strict=True)]
    total = costs[0]
    for cost in costs[1:]:
        total = working.plus(total, cost, "Total")
    listed = [
        f"{number} {thing} at {text(price)} dollars each" for (number, price), thing in zip(orders, things, strict=True)
    ]
    bought = ", ".join(listed[:-1]) + " and " + listed[-1]
    ask = draw.pick("How much does {they} pay in all?", "What is the total cost?", "How many dollars is that altogether?")
    voucher = draw.below(total) if draw.rng.random() < 0.4 else 0
    extra = f" A voucher takes off {voucher} dollars." if voucher else ""
    if voucher:
        total = working.minus(total, voucher, "To pay")
    return f"{draw.name} buys {bought}.{extra} {ask.format(they=draw.they)}", working, total


def sharing(draw: Draw) -> Told:
    """A total that is shared."""
    working = Working()
    people, each = draw.divisor(), draw.between(*PRICES[draw.level])
    total = people * each
    first = draw.below(total)
    friend = draw.other()[0]
    together = working.plus(first, total - first, "Together")
    part = working.over(together, people, "Each")
    ask = draw.pick(
        f"{draw.name} has {first} {draw.things} and {friend} has {total - first}. They put them together and share them equally among "
        f"{people} children. How many does each child get?",
        f"{draw.name} collected {first} {draw.things} in the morning and {total - first} in the evening. They are packed equally into "
        f"{people} boxes. How many are in each box?",
    )
    if draw.level >= 3:
        eaten = draw.below(part)
        part = working.minus(part, eaten, "Left")
        ask = ask.replace("How many does each child get?", f"Each child uses {eaten}. How many does each child have left?")
        ask = ask.replace("How many are in each box?", f"From each box {eaten} are taken. How many are left in each box?")
    return ask, working, part


def ages(draw: Draw) -> Told:
    """Related ages."""
    working = Working()
    (second, _, _), factor = draw.other(), draw.between(2, 4)
    low, high = {1: (3, 9), 2: (4, 15), 3: (5, 25), 4: (11, 40), 5: (15, 60)}[draw.level]
    age, gap = draw.between(low, high), draw.between(low, high)
    years = draw.between(2, low + 8)
    kind = draw.between(0, 2)
    if kind == 0:
        older = working.plus(age, gap, second)
        result = working.plus(age, older, "Together")
        ask = draw.pick(
            f"{draw.name} is {age} years old. {second} is {gap} years older. How old are they together?",
            f"{second} is {gap} years older than {draw.name}, who is {age}. What is the sum of their ages?",
        )
        return ask, working, result
    older = working.times(age, factor, second)
    if kind == 1:
        result = working.plus(older, years, f"In {years} years")
        return (
            f"{second} is {factor} times as old as {draw.name}, who is {age}. How old will {second} be in {years} years?",
            working,
            result,
        )
    result = working.minus(older, age, "Difference")
    return f"{draw.name} is {age}. {second} is {factor} times as old. How many years older is {second}?", working, result


def distance(draw: Draw) -> Told:
    """Legs of a trip at different speeds."""
    working = Working()
    legs = draw.length(1, 3)
    ways = draw.rng.sample(["bus", "train", "bike", "car", "boat"], legs)
    pairs = [(draw.between(*PRICES[min(draw.level, 4)]), draw.between(2, 9 if draw.level < 5 else 25)) for _ in ways]
    parts = [working.times(speed, hours, way.capitalize()) for (speed, hours), way in zip(pairs, ways, strict=True)]
    total = parts[0]
    for part in parts[1:]:
        total = working.plus(total, part, "Distance")
    told = [f"{hours} hours by {way} at {speed} km per hour" for (speed, hours), way in zip(pairs, ways, strict=True)]
    trip = told[0] if legs == 1 else ", ".join(told[:-1]) + " and " + told[-1]
    whole = 0
    if draw.rng.random() < 0.35:
        whole = int(total) + draw.amount()
        total = working.minus(whole, total, "Left")
        return f"{draw.name} wants to travel {whole} km and goes {trip}. How many km are left?", working, total
    ask = draw.pick("How far does {} travel?", "How many km does {} go in all?", "What distance does {} cover?")
    return f"{draw.name} travels {trip}. {ask.format(draw.they)}", working, total


def fraction(draw: Draw) -> Told:
    """A fraction of a whole, and the rest."""
    working = Working()
    bottom = draw.between(2, 5) if draw.level <= 2 else draw.divisor()
    top = draw.between(1, bottom - 1)
    one = draw.between(*PRICES[draw.level])
    whole = one * bottom
    part = working.over(whole, bottom, f"1/{bottom}")
    if top > 1:
        part = working.times(part, top, f"{top}/{bottom}")
    if draw.rng.random() < 0.3:
        return draw.pick(f"What is {top}/{bottom} of {whole}?", f"Find {top}/{bottom} of {whole}."), working, part
    if draw.rng.random() < 0.4:
        ask = draw.pick(
            f"{draw.name} has {whole} {draw.things}. {draw.they.capitalize()} gives {top}/{bottom} of them to a friend. How many did the friend get?",
            f"A class read {top}/{bottom} of a book with {whole} pages. How many pages did they read?",
        )
        return ask, working, part
    rest = working.minus(whole, part, "Rest")
    ask = draw.pick(
        f"{draw.name} has {whole} {draw.things} and sells {top}/{bottom} of them. How many are left?",
        f"A tank holds {whole} litres. {top}/{bottom} of it is used. How many litres remain?",
        f"{draw.name} had {whole} dollars and spent {top}/{bottom} of it. How much is left?",
    )
    return ask, working, rest


def comparison(draw: Draw) -> Told:
    """More, fewer, or a multiple."""
    working = Working()
    friend = draw.other()[0]
    own = draw.between(*AMOUNTS[min(draw.level, 4)])
    kind = draw.between(0, 3)
    if kind == 3 and draw.level <= 4:
        own += own % 2
        half = working.over(own, 2, friend)
        total = working.plus(own, half, "Together")
        ask = draw.pick(
            f"{draw.name} sold {own} {draw.things} in April and half as many in May. How many did {draw.they} sell altogether?",
            f"{draw.name} has {own} {draw.things}. {friend} has half as many. How many do they have together?",
        )
        working.lines[0] = working.lines[0].replace(f"{friend}: ", "Half: ")
        return ask, working, total
    if kind == 0:
        other = working.plus(own, more := draw.below(own), friend)
        told = draw.pick(f"{friend} has {more} more.", f"{friend} has {more} more than {draw.name}.")
    elif kind == 1:
        other = working.minus(own, fewer := draw.below(own), friend)
        told = draw.pick(f"{friend} has {fewer} fewer.", f"{friend} has {fewer} less than {draw.name}.")
    else:
        factor = draw.between(2, 4 if draw.level < 4 else 12)
        other = working.times(own, factor, friend)
        told = draw.pick(f"{friend} has {factor} times as many.", f"{friend} has {factor} times as many as {draw.name}.")
    if kind != 1 and draw.rng.random() < 0.3:
        difference = working.minus(other, own, "Difference")
        return (
            f"{draw.name} has {own} {draw.things}. {told} How many more does {friend} have than {draw.name}?",
            working,
            difference,
        )
    total = working.plus(own, other, "Together")
    third = ""
    if draw.level >= 4:
        extra = draw.amount()
        total = working.plus(total, extra, "All")
        third = f" A third child has {extra}."
    ask = draw.pick("How many do they have together?", "How many {} do they have in all?", "What is the total?").format(
        draw.things
    )
    return f"{draw.name} has {own} {draw.things}. {told}{third} {ask}", working, total


UNITS = (
    ("hours", "minutes", 60), ("minutes", "seconds", 60), ("weeks", "days", 7), ("days", "hours", 24),
    ("metres", "centimetres", 100), ("kilometres", "metres", 1000), ("kilograms", "grams", 1000), ("dozen", "pieces", 12),
    ("feet", "inches", 12), ("years", "months", 12),
)  # fmt: skip


def units(draw: Draw) -> Told:
    """Conversion to a smaller unit."""
    working = Working()
    large, small, factor = draw.rng.choice(UNITS)
    number = draw.between(*{1: (2, 9), 2: (2, 12), 3: (11, 60), 4: (21, 99), 5: (101, 700)}[draw.level])
    value = working.times(number, factor, small.capitalize())
    if draw.level == 1 or draw.rng.random() < 0.35:
        return draw.pick(f"How many {small} are {number} {large}?", f"Convert {number} {large} to {small}."), working, value
    more = draw.between(1, factor - 1)
    value = working.plus(value, more, "In all")
    if draw.rng.random() < 0.5 or draw.level < 3:
        ask = draw.pick(
            f"How many {small} are {number} {large} and {more} {small}?",
            f"Write {number} {large} and {more} {small} in {small}.",
        )
        return ask, working, value
    used = draw.below(value)
    value = working.minus(value, used, "Left")
    return (
        f"A job takes {number} {large} and {more} {small}. After {used} {small}, how many {small} are left?",
        working,
        value,
    )


def rectangle(draw: Draw) -> Told:
    """Area, perimeter, and the cost of covering or fencing."""
    working = Working()
    length, width = draw.between(*PRICES[min(draw.level, 4)]), draw.count()
    field = draw.pick("garden", "room", "field", "park", "floor", "rectangle")
    told = draw.pick(f"A {field} is {length} m long and {width} m wide.", f"A {field} measures {length} m by {width} m.")
    price = draw.between(2, 9)
    if draw.rng.random() < 0.5:
        value = working.times(length, width, "Area")
        if draw.level >= 2 and draw.rng.random() < 0.6:
            value = working.times(value, price, "Cost")
            return f"{told} One square metre costs {price} dollars. What does all of it cost?", working, value
        return f"{told} What is its area?", working, value
    value = working.times(working.plus(length, width, "Sides"), 2, "Perimeter")
    if draw.level >= 2 and draw.rng.random() < 0.6:
        value = working.times(value, price, "Cost")
        return f"{told} A fence costs {price} dollars per metre. What does a fence around it cost?", working, value
    return f"{told} What is its perimeter?", working, value


def saving(draw: Draw) -> Told:
    """The time until a goal is reached."""
    working = Working()
    weekly, weeks, has = draw.divisor(), draw.between(*PRICES[draw.level]), draw.between(*PRICES[draw.level])
    goal = weekly * weeks + has
    missing = working.minus(goal, has, "Missing")
    value = working.over(missing, weekly, "Weeks")
    ask = draw.pick(
        f"{draw.name} wants a bike for {goal} dollars and has {has}. {draw.they.capitalize()} saves {weekly} dollars a week. How many weeks does it take?",
        f"{draw.name} has {has} dollars and saves {weekly} each week. After how many weeks does {draw.they} have {goal} dollars?",
    )
    return ask, working, value


def recipe(draw: Draw) -> Told:
    """A recipe for more people."""
    working = Working()
    people, each, guests = draw.divisor(), draw.between(*PRICES[min(draw.level, 4)]), draw.count()
    total = people * each
    good = draw.pick("grams of flour", "grams of rice", "ml of milk", "grams of sugar")
    one = working.over(total, people, "For one")
    value = working.times(one, guests, f"For {guests}")
    ask = draw.pick(
        f"A recipe for {people} people needs {total} {good}. How much is needed for {guests} people?",
        f"{people} people need {total} {good}. How many {good.split()[0]} do {guests} people need?",
    )
    return ask, working, value


def tank(draw: Draw) -> Told:
    """Filling and leaking at the same time."""
    working = Working()
    rate, hours, start = draw.between(*PRICES[min(draw.level, 4)]) + 3, draw.count(), draw.amount()
    leak = draw.between(1, rate - 1)
    net = working.minus(rate, leak, "Per hour")
    gained = working.times(net, hours, "Gained")
    value = working.plus(start, gained, "In all")
    ask = draw.pick(
        f"A tank holds {start} litres. Each hour {rate} litres flow in and {leak} flow out. How many litres does it hold after {hours} hours?",
        f"There are {start} litres in a pool. Every hour {rate} litres are added and {leak} are lost. How much is in it after {hours} hours?",
    )
    return ask, working, value


def production(draw: Draw) -> Told:
    """Machines whose products are partly faulty."""
    working = Working()
    machines, speed, hours = draw.between(2, 9), draw.between(*PRICES[min(draw.level, 3)]), draw.count()
    together = working.times(speed, machines, "Per hour")
    made = working.times(together, hours, "Made")
    bad = draw.below(made)
    value = working.minus(made, bad, "Good")
    ask = draw.pick(
        f"A factory has {machines} machines. Each makes {speed} {draw.things} an hour. They run for {hours} hours and {bad} of the "
        f"{draw.things} are bad. How many are good?",
        f"{machines} workers each pack {speed} {draw.things} per hour for {hours} hours. Then {bad} are sent away. How many remain?",
    )
    return ask, working, value


def doubling(draw: Draw) -> Told:
    """Repeated growth by a factor."""
    working = Working()
    times, start = draw.length(1, 5), draw.between(*PRICES[min(draw.level, 3)])
    factor = 2 if draw.level < 3 or times > 3 else 3
    value: Number = start
    for number in range(1, times + 1):
        value = working.times(value, factor, f"Day {number}")
    word = {2: "doubles", 3: "triples"}[factor]
    ask = draw.pick(
        f"A colony of {start} cells {word} every day. How many cells are there after {times} days?",
        f"{draw.name} has {start} {draw.things}. Every day the number {word}. How many are there after {times} days?",
    )
    return ask.replace("1 days", "1 day") if times == 1 else ask, working, value


def reading(draw: Draw) -> Told:
    """Pages per day, and the pages left."""
    working = Working()
    days, pages = draw.count(), draw.between(*PRICES[min(draw.level, 4)])
    read = working.times(pages, days, "Read")
    whole = int(read) + draw.amount()
    value = working.minus(whole, read, "Left")
    ask = draw.pick(
        f"A book has {whole} pages. {draw.name} reads {pages} pages a day for {days} days. How many pages are left?",
        f"{draw.name} must pack {whole} {draw.things} and packs {pages} each day. How many are left after {days} days?",
    )
    return ask, working, value


def two_earners(draw: Draw) -> Told:
    """Two people with different wages."""
    working = Working()
    friend = draw.other()[0]
    first, second = draw.between(*PRICES[min(draw.level, 4)]), draw.between(*PRICES[min(draw.level, 4)])
    weeks = draw.count()
    first += first == second
    a = working.times(first, weeks, draw.name)
    b = working.times(second, weeks, friend)
    told = f"{draw.name} earns {first} dollars a week and {friend} earns {second} dollars a week."
    if draw.rng.random() < 0.5:
        value = working.plus(a, b, "Together")
        return f"{told} How much do they earn together in {weeks} weeks?", working, value
    value = working.minus(a, b, "Difference") if a > b else working.minus(b, a, "Difference")
    return f"{told} What is the difference between them after {weeks} weeks?", working, value


def fuel(draw: Draw) -> Told:
    """Litres for a distance, and their cost."""
    working = Working()
    per_litre, litres, price = draw.divisor(), draw.count(), draw.between(2, 9)
    km = per_litre * litres
    both = draw.level >= 2 and draw.rng.random() < 0.5
    way: Number = km
    if both:
        way = working.times(km, 2, "Both ways")
    used = working.over(way, per_litre, "Litres")
    value = working.times(used, price, "Cost")
    trip = f"drives {km} km and back" if both else f"drives {km} km"
    ask = draw.pick(
        f"{draw.name} {trip}. The car goes {per_litre} km per litre, and a litre costs {price} dollars. What does the fuel cost?",
        f"A car goes {per_litre} km on one litre of fuel at {price} dollars a litre. {draw.name} {trip}. How much does {draw.they} pay for fuel?",
    )
    return ask, working, value


FAMILIES: tuple[Family, ...] = (
    expression, expression, expression, words, unknown_number, average, percentage, chain, packs, wages, collection, selling,
    change, shopping, sharing, ages, distance, fraction, comparison, units, rectangle, saving, recipe, tank, production,
    doubling, reading, two_earners, fuel,
)  # fmt: skip
"""Expressions are listed three times, because new users type them first."""


def make(level: int, rng: random.Random) -> Problem:
    """Return a random problem of a level from 1 to 5, with 2 to 9 steps."""
    while True:
        family = rng.choice(FAMILIES)
        question, working, value = family(Draw(rng, level))
        if 0 < len(working.lines) < MAX_STEPS and 0 <= value < 1_000_000:
            if rng.random() < 0.15:
                question = re.sub(r"(\d+(?:\.\d+)?) dollars", r"$\1", question)
            answer = text(value)
            steps = (*working.lines, f"The answer is \\boxed{{{answer}}}.")
            return Problem(question, steps, answer, level, family.__name__)


@cache
def held_out(name: str) -> tuple[Problem, ...]:
    """Return the held-out set `test` or `dev`: 100 problems per level with distinct keys, and no key in both sets."""
    taken: set[str] = set() if name == "test" else {problem.key for problem in held_out("test")}
    rng = random.Random(HELD_OUT_SEEDS[name])
    problems: list[Problem] = []
    for level in LEVELS:
        wanted = len(problems) + HELD_OUT_PER_LEVEL
        while len(problems) < wanted:
            problem = make(level, rng)
            if problem.key not in taken:
                taken.add(problem.key)
                problems.append(problem)
    return tuple(problems)


def training_problems(seed: int, weights: Sequence[float] = LEVEL_WEIGHTS) -> Iterator[Problem]:
    """Yield problems without end, of all levels, with no key of a held-out problem. `weights` are those of the levels."""
    excluded = {problem.key for name in HELD_OUT_SEEDS for problem in held_out(name)}
    rng = random.Random(seed)
    while True:
        problem = make(rng.choices(LEVELS, weights)[0], rng)
        if problem.key not in excluded:
            yield problem


def main() -> None:
    name = sys.argv[1]
    problems = held_out(name) if name in HELD_OUT_SEEDS else islice(training_problems(seed=0), int(sys.argv[2]))
    counts = dict.fromkeys(LEVELS, 0)
    for problem in problems:
        counts[problem.level] += 1
        row = {
            "id": f"{name}/{problem.level}/{counts[problem.level]}",
            "problem": problem.question,
            "answer": problem.answer,
            "solution": problem.solution,
            "level": problem.level,
            "family": problem.family,
        }
        print(json.dumps(row))


if __name__ == "__main__":
    main()
