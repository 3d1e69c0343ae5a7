"""The names of run folders."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path, PurePath

from arbitrage_cli.app.naming import NamedModels, names_of, router_now, system_of, template_sha256
from arbitrage_cli.app.options import Options
from arbitrage_cli.app.resume import settings_of
from arbitrage_cli.costs.store import loading_of, machine_here
from arbitrage_cli.model_files.checksums import sha256_seen
from arbitrage_cli.model_files.pairs import local_files
from arbitrage_cli.problems.rows import Dataset
from arbitrage_cli.problems.tasks import Task
from arbitrage_cli.types import Json

MAX_NAME = 60  # characters in each half of a folder name
DIGEST = 8  # characters of a checksum in a name
ADVICE = "advise--"  # the beginning of the names of folders of `advise`


def default_folder(dataset: str, models: Sequence[str], *, prefix: str = "", concurrency: int = 1) -> Path:
    """Return the default run folder, such as `runs/math500--mine`, or `runs/math500--mine--concurrency-8`."""
    names = [PurePath(name).name.removesuffix(".gguf") for name in models]
    suffix = "" if concurrency == 1 else f"--concurrency-{concurrency}"
    return Path("runs") / f"{prefix}{_file_name(PurePath(dataset).stem)}--{_file_name(*names)}{suffix}"


def advice_folder(options: Options, named: NamedModels, task: Task, dataset: Dataset) -> Path:
    """Return the default run folder of `advise`. Other models, settings or problems have another folder.

    Raises ModelUnsupportedError if a model runs in llama.cpp, and llama.cpp cannot be imported.
    """
    content = json.dumps([_conditions(options, named, task), dataset.sha256])
    path = default_folder(dataset.name, names_of(options), prefix=ADVICE)
    return path.with_name(f"{path.name}--{hashlib.sha256(content.encode()).hexdigest()[:DIGEST]}")


def _conditions(options: Options, named: NamedModels, task: Task) -> Json:
    """Return the conditions on which advice depends: models by their checksums, the router, settings and the machine."""
    router = router_now(named, task)
    models = {
        str(role): sha256_seen(files) if (files := local_files(source)) else source
        for role, source in named.sources.items()
        if role != "prm"
    }
    return {
        "machine": None if named.served.keys() >= models.keys() else asdict(machine_here()),
        "loading": asdict(loading_of(named.load)),
        "models": models,
        "router": router.router.sha256 if router else None,
        "task": task.name,
        "settings": settings_of(replace(options, task=None)),  # the data set may have named the task
        "price": named.price,
        "system": system_of(options, named.pair, task),
        "chat_template_kwargs": dict(named.load.template_variables),
        "served": {role: [template_sha256(one), one.continuation] for role, one in named.served.items()},
    }


def _file_name(*names: str) -> str:
    """Join names into a valid file name. A long name is truncated and made unique by a checksum."""
    plain = (re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") for name in names)
    whole = "-".join(filter(None, plain)) or "run"
    digest = hashlib.sha256(whole.encode()).hexdigest()[:DIGEST]
    return whole if len(whole) <= MAX_NAME else f"{whole[: MAX_NAME - DIGEST]}-{digest}"
