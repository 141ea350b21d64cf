"""Where a teacher comes from. No torch here: recipes import this."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from apriel_assets.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherSpec:
    """A causal LM and its tokenizer, by name; `load_teacher` turns it into the two."""

    __pydantic_config__: ClassVar[dict] = {"extra": "forbid"}

    model: str  # "bundled", a hub id, a local directory, or a .gguf file
    gguf_file: str | None = None  # a file within `model`
    revision: str | None = None  # hub only: branch, tag or commit
    trust_remote_code: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        if not self.model:
            raise UserError("teacher.model is empty; give 'bundled', a hub id, a directory or a .gguf file")
        if self.gguf_file and not self.gguf_file.endswith(".gguf"):
            raise UserError(
                f"teacher.gguf_file {self.gguf_file!r} does not end in .gguf; name the file itself"
            )
