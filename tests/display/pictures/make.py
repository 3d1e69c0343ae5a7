"""Draws the pictures of README from a real run of the built-in pair: `python tests/display/pictures/make.py`.

The page needs chromium. Other programs lengthen the times in the pictures, so use an idle machine.
"""

import io
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "support"))

from cli import PROGRAM, Terminal, environment  # noqa: E402 - after its folder is on the path

COMMAND = ("solve", "What is 23 * 47 - 88?")
COLUMNS = 92
COLORS = {"brown": "yellow"}  # pyte's names


def draw_live_view() -> None:
    with Terminal(*COMMAND, columns=COLUMNS) as terminal:
        assert terminal.wait() == 0
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text(f'$ arbitrage solve "{COMMAND[1]}"', "bold"))
    for number in range(terminal.screen.cursor.y):
        line = Text()
        for cell in (terminal.screen.buffer[number][column] for column in range(COLUMNS)):
            color = COLORS.get(cell.fg, cell.fg)
            styles = [("bold", cell.bold), ("strike", cell.strikethrough), ("" if color == "default" else color, True)]
            line.append(cell.data, " ".join(name for name, has in styles if has and name))
        console.print(line, no_wrap=True, overflow="crop")
    console.save_svg(str(HERE / "live.svg"), title="arbitrage")


def draw_page() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for arguments in (
            ("bench", "--dataset", "builtin", "--limit", "100", "--threads", "1", "-o", f"{folder}/run"),
            ("report", f"{folder}/run", "-o", f"{folder}/page.html"),
        ):
            subprocess.run([*PROGRAM, *arguments], check=True, env=environment(), stdout=subprocess.DEVNULL)
        size = ("--window-size=1000,1190", "--hide-scrollbars")
        subprocess.run(
            ["chromium", "--headless", "--no-sandbox", *size, f"--screenshot={HERE / 'page.png'}", f"{folder}/page.html"],
            check=True,
        )


if __name__ == "__main__":
    draw_live_view()
    draw_page()
