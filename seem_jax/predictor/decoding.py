"""From questions about encoded images to raw answers, in decoder calls of few shapes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np

from seem_jax.config import Config
from seem_jax.data.transforms import Placement
from seem_jax.predictor import checks
from seem_jax.predictor import prompts as drawing
from seem_jax.predictor.programs import POINTS, Answers, ObjectAnswers, Programs, Row
from seem_jax.predictor.prompts import MaskMemory, Prompts
from seem_jax.predictor.reference import Reference
from seem_jax.predictor.texts import Texts
from seem_jax.types import Features, VisualPrompts


class EncodedImage:
    """An image and all that the decoder needs of it. Made by `Predictor.encode`."""

    def __init__(self, placement: Placement, features: Features):
        self.placement = placement
        self.features = features
        self.objects: ObjectAnswers | None = None  # as NumPy, once somebody asked

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the original image in pixels."""
        return self.placement.original

    @property
    def nbytes(self) -> int:
        """Memory held by the features and, once asked for, the object answers."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves((self.features, self.objects)))


Question = tuple[EncodedImage, Prompts]


@dataclasses.dataclass(frozen=True, eq=False)
class Reply:
    """What the decoder says to one question: an answer for each of its phrases, or a single one."""

    texts: tuple[str | None, ...]  # the phrases; (None,) for a question without one
    answers: tuple[Answers, ...]  # as NumPy, [A, ...] each, best first
    dropped: int  # drawn pixels beyond what fits


class Decoding:
    """The decoder's side of a predictor: checks questions, and answers many of them together."""

    def __init__(
        self,
        programs: Programs,
        params: dict,
        config: Config,
        texts: Texts,
        rows_together: int,
        fingerprint: Callable[[], str],
    ):
        """fingerprint says which model this is, so that references of others are refused."""
        self.programs, self.params, self.texts = programs, params, texts
        self.width, self.max_points = config.model.decoder.width, config.data.max_points
        self.rows_together, self.fingerprint = rows_together, fingerprint

    def draw(self, asked: Prompts, placement: Placement) -> drawing.Drawn:
        """The points of a question's drawings on an image that lies so in the model's square."""
        return drawing.draw(asked, placement, self.max_points)

    def check(self, asked: Prompts, placement: Placement) -> drawing.Drawn:
        """The points of a question that can be asked; ValueError, naming what is wrong, for others."""
        asked.check_given()
        self.check_usable(asked)
        drawn = self.draw(asked, placement)
        others = (asked.text, asked.reference, asked.memory)
        if not (drawn.positive & drawn.valid).any() and all(other is None for other in others):
            raise ValueError(
                "point_labels are all 0: negative points alone do not say which object is meant; "
                "add a positive point, a text, a reference or the memory of an earlier answer."
            )
        return drawn

    def check_usable(self, asked: Prompts) -> None:
        """Raises ValueError for a text, reference or memory that this model cannot use."""
        reference, memory = asked.reference, asked.memory
        if asked.text is not None:
            self.texts.tokens(checks.text(asked.text), "text")
        if reference is not None:
            if not isinstance(reference, Reference):
                raise ValueError(
                    f"reference is a {type(reference).__name__}; expected what "
                    "Predictor.reference(...) or Reference.load(file) gives."
                )
            if reference.model != self.fingerprint():
                raise ValueError(
                    "reference was made by another model: its numbers mean nothing to this one; "
                    "make it again with this predictor."
                )
        if memory is not None:
            kept = memory.embedding if isinstance(memory, MaskMemory) else None
            if np.shape(kept) != (self.width,) or not np.isfinite(kept).all():
                raise ValueError(
                    f"memory is a {type(memory).__name__} of shape {np.shape(kept)}; expected the "
                    f"`memory` of an earlier prediction of this model: finite, of width {self.width}."
                )

    def ask(self, questions: Sequence[Question]) -> list[Reply]:
        """One reply for each question; nothing runs before all of them are known to be sound."""
        owners: list[EncodedImage] = []
        rows: list[Row] = []
        replies: list[tuple[tuple[str | None, ...], int]] = []
        for image, asked in questions:
            drawn = self.check(asked, image.placement)
            texts = (None,) if asked.text is None else checks.text(asked.text)
            rows += [self.row(image, asked, drawn, text) for text in texts]
            owners += [image] * len(texts)
            replies.append((texts, drawn.dropped))
        answers = iter(self._decode(owners, rows))
        return [
            Reply(texts, tuple(next(answers) for _ in texts), dropped) for texts, dropped in replies
        ]

    def show(self, image: EncodedImage, asked: Prompts, *, located: bool = False) -> Reference:
        """What the features of an image say where something was drawn, for other images to use.

        located: it also says where, for images like later frames, on which it is near the same place.
        """
        drawn = self.draw(asked, image.placement)
        tokens = jax.device_get(
            self.programs.read(
                self.params, image.features, _visual_prompts(drawn), np.full((1, 1), located)
            )
        )
        return Reference(
            model=self.fingerprint(),
            levels=tuple(np.asarray(part[0], np.float32)[drawn.valid] for part in tokens.levels),
            pooled=tokens.pooled[0, 0],
            count=int((drawn.positive & drawn.valid).sum()),
            num_images=1,
        )

    def row(
        self, image: EncodedImage, asked: Prompts, drawn: drawing.Drawn, text: str | None
    ) -> Row:
        """One question as the programs take it, with one of its phrases."""
        reference, memory = asked.reference, asked.memory
        remembered = np.zeros(self.width) if memory is None else memory.embedding
        kept = next(most for most in POINTS if not drawn.valid[most:].any())
        return Row(
            points=drawn.points[:kept],
            positive=drawn.positive[:kept],
            valid=drawn.valid[:kept],
            fitted=np.array(image.placement.resized, np.int32),
            memory=np.asarray(remembered, np.float32),
            remembers=np.bool_(memory is not None),
            phrase=None if text is None else self.texts.phrase(text),
            reference=None if reference is None else reference.tokens(),
        )

    def _decode(self, images: Sequence[EncodedImage], rows: Sequence[Row]) -> list[Answers]:
        """The answers of each row as NumPy; rows of one kind share decoder calls."""
        kinds: dict[tuple[bool, bool, int], list[int]] = {}
        for index, row in enumerate(rows):
            kind = (row.phrase is None, row.reference is None, len(row.points))
            kinds.setdefault(kind, []).append(index)
        out: dict[int, Answers] = {}
        for members in kinds.values():
            for start in range(0, len(members), self.rows_together):
                part = members[start : start + self.rows_together]
                together = 1 if len(part) == 1 else self.rows_together
                padded = part + part[-1:] * (together - len(part))
                answers = jax.device_get(
                    self.programs.answer(
                        self.params,
                        tuple(images[index].features for index in padded),
                        jax.tree.map(lambda *parts: np.stack(parts), *[rows[i] for i in padded]),
                    )
                )
                for place, index in enumerate(part):
                    out[index] = jax.tree.map(lambda array, place=place: array[place], answers)
        return [out[index] for index in range(len(rows))]


def _visual_prompts(drawn: drawing.Drawn) -> VisualPrompts:
    return VisualPrompts(
        points=drawn.points[None],
        prompt=np.zeros((1, len(drawn.points)), np.int32),
        positive=drawn.positive[None],
        valid=drawn.valid[None],
    )
