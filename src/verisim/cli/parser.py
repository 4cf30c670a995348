"""The argument parser of all verbs: jsonargparse with errors as sentences and nearest suggestions."""

from __future__ import annotations

import inspect
import re
from argparse import Action, RawDescriptionHelpFormatter
from pathlib import Path
from typing import Any, NoReturn

import jsonargparse

from verisim.errors import VerisimError, nearest


class _Formatter(RawDescriptionHelpFormatter, jsonargparse.DefaultHelpFormatter):
    """Keeps the line breaks of examples, and calls a choice of words a text."""

    def _expand_help(self, action: Action) -> str:
        return re.sub(r"type: <function .*? at \w+>", "type: str", super()._expand_help(action))


class Parser(jsonargparse.ArgumentParser):
    """ArgumentParser whose errors are VerisimError; `examples` close the help text."""

    def __init__(self, verb: str, description: str, examples: str = "") -> None:
        epilog = f"examples:\n{examples.rstrip()}" if examples else None
        super().__init__(
            prog=f"verisim {verb}",
            description=description,
            epilog=epilog,
            formatter_class=_Formatter,
            exit_on_error=True,
        )
        self.allow_abbrev = False  # a misspelt option is an error, not a guess

    def add_device(self) -> None:
        """Add --device, the device of all models that the command loads."""
        self.add_argument(
            "--device", type=str, default="auto", help="cpu, cuda, cuda:1; auto: a GPU if there is one"
        )

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        """The arguments; a device among them is in use from here on."""
        found = super().parse_args(*args, **kwargs)
        if "device" in found:
            from verisim.devices import use_device

            use_device(found.device)
        return found

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise VerisimError instead of printing the usage."""
        text = re.sub(r"\s+", " ", str(message)).strip()
        for word in re.findall(r"--?[\w.]+", text):
            if word not in self.option_names():
                text += nearest(word, self.option_names())
                break
        raise VerisimError(f"{text.rstrip('.')}. See '{self.prog} --help'.")

    def option_names(self) -> list[str]:
        """All long options."""
        return [o for a in self._actions for o in a.option_strings if o.startswith("--")]

    def explain(self, section: str, settings_class: type) -> None:
        """Take the help texts of 'section.key' from the comments behind the constructor's arguments."""
        source = inspect.getsource(settings_class.__init__)  # type: ignore[misc]
        comments = dict(re.findall(r"^\s+(\w+):.*?,\s+# (.+)$", source, re.MULTILINE))
        for action in self._actions:
            name = action.dest.removeprefix(f"{section}.")
            if name != action.dest and name in comments:
                action.help = comments[name].replace("%", "%%")

    def defaults_from(self, section: str, values: dict[str, Any], where: str) -> None:
        """Set defaults 'section.key' from a recipe; unknown keys are errors that suggest the nearest."""
        known = {o[len(section) + 3 :] for o in self.option_names() if o.startswith(f"--{section}.")}
        for key, value in values.items():
            if key not in known:
                raise VerisimError(f"{where}: unknown setting '{section}.{key}'.{nearest(key, known)}")
            self.set_defaults({f"{section}.{key}": value})


def data_of_run(parser: Parser, argv: list[str]) -> None:
    """Add the --data options; their defaults are the images that the first run in argv was trained on."""
    from verisim.training.run_folder import RunFolder
    from verisim.training.source import DataSettings

    parser.add_class_arguments(DataSettings, "data")
    for word in argv:
        if not word.startswith("-") and (Path(word) / "config.yaml").exists():
            parser.defaults_from("data", RunFolder(word).config()["data"], word)
            return
