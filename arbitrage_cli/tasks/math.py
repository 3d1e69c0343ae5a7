"""Mathematics, as in the paper: reasoning in paragraphs, and a final answer in a box."""

from arbitrage_cli.grading.extract import boxed_answer
from arbitrage_cli.grading.grader import Grader, grader_version
from arbitrage_cli.inference.chat_template import INSTRUCTIONS
from arbitrage_cli.tasks.task import Task

MATH = Task("math", INSTRUCTIONS, boxed_answer, Grader, grader_version)
