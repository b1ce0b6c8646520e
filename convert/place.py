"""Where the outputs of a verb go, and whether they can: what is looked at before anything else.

In: a folder, and the names of model and targets. Out: nothing, or the OutputError that a run would
end with: the folder cannot be written to, lies on two file systems or is in use by another run, a
name is too long, or is taken by what no plan of this version could keep. Names are all that is
known so early. A plan may take long (one that fits a size measures weights, a calibration runs the
model), and whoever waits for it must not hear afterwards that the folder is read-only. The run
looks again, since others write to disks too. Leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from convert import staging


@dataclass(frozen=True, slots=True)
class Place:
    """Where outputs go: those of the targets in `folders` are folders, the others GGUF files.

    A GGUF that may be split is a folder or a file, which only its plan tells.
    """

    out: Path
    folders: Collection[str] = ()
    split: bool = False
    force: bool = False

    def check(self, model: str, targets: Iterable[str], tool: str) -> None:
        """Raise OutputError where an output of `model` cannot be put in its place."""
        names = {target: f"{model}-{target}" for target in targets}
        folders = {name for target, name in names.items() if target in self.folders}
        files = {f"{name}.gguf" for target, name in names.items() if target not in self.folders}
        known = folders if self.split else folders | files

        def is_there(name: str) -> bool:
            found = staging.may_be_kept(self.out, name, is_folder=name in folders, tool=tool)
            if found or not self.split or name in folders:
                return found
            whole = name.removesuffix(".gguf")
            return staging.may_be_kept(self.out, whole, is_folder=True, tool=tool)

        if not self.force and all(map(is_there, folders | files)):
            return  # nothing may have to be written
        with staging.trial_folder(self.out):
            staging.check_names(self.out, sorted(folders | files))
            for name in [] if self.force else sorted(known):
                if (self.out / name).exists() and not is_there(name):
                    raise staging.in_the_way(self.out / name)
