"""What users call: encode an image once, then ask about it with any mix of prompts.

    predictor = Predictor.from_checkpoint("runs/shapes")
    predictor.set_image(image)                        # uint8 [H, W, 3]
    answer = predictor.predict(points=[[40, 52]], text="the red star")
    answer.masks[0], answer.scores[0], answer.memory

All coordinates are pixels of the original image. Nothing compiles after `warm_up`, whatever the
sizes, prompts and vocabularies; on CPU a request gives the same bits alone and in any batch.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from seem_jax import checkpoint
from seem_jax.config import Config
from seem_jax.data import transforms
from seem_jax.models.language.tokenizer import Tokenizer
from seem_jax.models.seem import build
from seem_jax.predictor import checks, everything
from seem_jax.predictor import prompts as drawing
from seem_jax.predictor.programs import (
    MAX_ANSWERS,
    MAX_REFERENCE_POINTS,
    Answers,
    ObjectAnswers,
    Programs,
    Row,
)
from seem_jax.predictor.prompts import MaskMemory, Prompts
from seem_jax.predictor.reference import Reference
from seem_jax.predictor.results import PanopticPrediction, Prediction, SemanticPrediction
from seem_jax.predictor.session import Session, SessionPool, answer_sessions
from seem_jax.predictor.texts import Texts, default_classes
from seem_jax.types import Features, VisualPrompts

ROWS_TOGETHER = 8  # questions of one decoder call on an accelerator
Asked = Prompts | Sequence[Prompts]


class EncodedImage:
    """An image and all that the decoder needs of it. Made by `Predictor.encode`."""

    def __init__(self, placement: transforms.Placement, features: Features):
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


class Predictor:
    """A model with its tokenizer, ready for requests of one thread; a `SessionPool` serves several."""

    def __init__(
        self,
        params: dict,
        config: Config,
        tokenizer: Tokenizer,
        *,
        classes: Sequence[str] = (),
        num_things: int | None = None,
        image_size: int | None = None,
        rows_together: int | None = None,
    ):
        """A predictor of restored parameters; see `from_checkpoint`.

        classes is the vocabulary used when a call names none, the first num_things of them things
        (all if absent). image_size is the side of the square that images are fitted into, in
        pixels. rows_together is how many questions share a decoder call: 1 on CPU, where it costs
        nothing and keeps results independent of their company to the last bit, else 8.
        """
        self.config, self.params = config, params
        self.side = image_size or config.evaluation.image_size or config.data.image_size
        step = config.model.backbone.size_divisor
        if self.side % step or self.side <= 0:
            raise ValueError(f"image_size = {self.side}; expected a positive multiple of {step}.")
        on_cpu = jax.default_backend() == "cpu"
        self.rows_together = rows_together or (1 if on_cpu else ROWS_TOGETHER)
        self.classes = tuple(classes)
        self.num_things = len(self.classes) if num_things is None else num_things
        self.programs = Programs(build(config.model))
        self.image: EncodedImage | None = None
        self.texts = Texts(self.programs, params, tokenizer, config)
        self._fingerprint = ""

    @classmethod
    def from_checkpoint(
        cls,
        directory: str | Path,
        *,
        step: int | None = None,
        tokenizer: str | Path | None = None,
        image_size: int | None = None,
    ) -> Predictor:
        """The predictor of a run's newest good checkpoint, or of one step.

        The tokenizer and the default vocabulary are those of the run's data set where they are
        still there; give `tokenizer` where it moved. The embeddings of a vocabulary are kept in
        DIRECTORY/class_tables for the next process. Raises ValueError where something is missing.
        """
        params, config = checkpoint.restore_params(directory, step)
        classes, num_things = default_classes(config)
        predictor = cls(
            params,
            config,
            Tokenizer(tokenizer or config.data.tokenizer),
            classes=classes,
            num_things=num_things,
            image_size=image_size,
        )
        predictor.texts.tables.cache = Path(directory) / "class_tables"
        return predictor

    # Images

    def set_image(self, image: np.ndarray) -> EncodedImage:
        """Encodes the image, uint8 [H, W, 3] in RGB, that the next calls are about."""
        self.image = self.encode(image)
        return self.image

    def reset_image(self) -> None:
        """Forgets the image and frees its memory."""
        self.image = None

    def encode(self, image: np.ndarray) -> EncodedImage:
        """The encoded image, without making it the current one; uint8 [H, W, 3] in RGB."""
        image = checks.image(image)
        placement = transforms.fitted(image.shape[:2], self.side)
        square = transforms.place_image(image, placement)
        return EncodedImage(placement, self.programs.encode(self.params, square[None]))

    # Questions

    def predict(
        self,
        *,
        points=None,
        point_labels=None,
        box=None,
        scribble=None,
        scribble_labels=None,
        polygon=None,
        mask=None,
        text: str | Sequence[str] | None = None,
        reference: Reference | None = None,
        memory: MaskMemory | None = None,
        classes: Sequence[str] | None = None,
        top_k: int = 1,
        threshold: float = 0.0,
    ) -> Prediction:
        """The masks meant by any mix of prompts (fields of `Prompts`) on the current image.

        With several phrases, the answers of each in turn. top_k (1 to 16) different masks per
        question with scores from threshold on, best first. Given classes, each mask has a name.
        """
        asked = Prompts(
            points=points,
            point_labels=point_labels,
            box=box,
            scribble=scribble,
            scribble_labels=scribble_labels,
            polygon=polygon,
            mask=mask,
            text=text,
            reference=reference,
            memory=memory,
        )
        image = self._current()
        return self.answer([(image, asked)], classes=classes, top_k=top_k, threshold=threshold)[0]

    def predict_batch(
        self,
        images: Sequence[np.ndarray],
        prompts: Sequence[Asked | Mapping],
        *,
        classes: Sequence[str] | None = None,
        top_k: int = 1,
        threshold: float = 0.0,
    ) -> list[Prediction | list[Prediction]]:
        """The answers for many images of any sizes, in order.

        prompts holds for each image a `Prompts` (or a dict of its fields), or a list of any number
        of them for as many objects; the result has the same structure. Memory is bounded: a few
        images are encoded at a time. The current image stays as it is.
        """
        if not isinstance(prompts, Sequence) or len(prompts) != len(images):
            raise ValueError(f"{len(images)} images were given with {_length(prompts)} prompts.")
        wanted = [_questions(asked, index) for index, asked in enumerate(prompts)]
        for index, image in enumerate(images):
            checks.image(image, f"images[{index}]")
        out: list[Prediction | list[Prediction]] = []
        for start in range(0, len(images), self.rows_together):
            part = range(start, min(start + self.rows_together, len(images)))
            encoded = {index: self.encode(images[index]) for index in part}
            flat = [(encoded[index], asked) for index in part for asked in wanted[index]]
            answers = iter(self.answer(flat, classes=classes, top_k=top_k, threshold=threshold))
            for index in part:
                own = [next(answers) for _ in wanted[index]]
                single = isinstance(prompts[index], Prompts | Mapping)
                out.append(own[0] if single else own)
        return out

    def answer(
        self,
        questions: Sequence[tuple[EncodedImage, Prompts]],
        *,
        classes: Sequence[str] | None = None,
        top_k: int = 1,
        threshold: float = 0.0,
    ) -> list[Prediction]:
        """One prediction for each question, about the same or different encoded images."""
        top_k, threshold = checks.count(top_k, MAX_ANSWERS), checks.share(threshold)
        vocabulary = () if classes is None else checks.classes(classes)
        table = self.texts.table(vocabulary) if vocabulary else None
        rows: list[Row] = []
        phrases: list[tuple[str | None, ...]] = []
        dropped = []
        for image, asked in questions:
            asked.check_given()
            self.check(asked)
            texts = (None,) if asked.text is None else checks.text(asked.text)
            drawn = drawing.draw(asked, image.placement, self.config.data.max_points)
            self._check_direction(asked, drawn)
            rows += [self._row(image, asked, drawn, text) for text in texts]
            phrases.append(texts)
            dropped.append(drawn.dropped)
        owners = [image for (image, _), texts in zip(questions, phrases) for _ in texts]
        answers = iter(self._decode(owners, rows))
        return [
            self._prediction(
                image,
                [next(answers) for _ in texts],
                texts,
                lost,
                vocabulary,
                table,
                top_k,
                threshold,
            )
            for (image, _), texts, lost in zip(questions, phrases, dropped, strict=True)
        ]

    # Everything in the image

    def panoptic(
        self,
        classes: Sequence[str] | None = None,
        stuff: Sequence[str] | None = None,
        *,
        threshold: float | None = None,
        overlap: float | None = None,
    ) -> PanopticPrediction:
        """The current image cut into segments named by any vocabulary.

        classes names things, stuff regions without instances; both absent, the vocabulary of the
        training data. Thresholds are those of config.evaluation unless given.
        """
        options = self.config.evaluation
        threshold = checks.share(options.object_threshold if threshold is None else threshold)
        overlap = checks.share(options.overlap_threshold if overlap is None else overlap, "overlap")
        names, num_things = self._vocabulary(classes, stuff)
        image, probability, found = self._named_objects(names)
        ids, segments = everything.panoptic(
            probability, found.logits, image.placement, num_things, threshold, overlap
        )
        return PanopticPrediction(ids, tuple(segments), names)

    def instances(
        self, classes: Sequence[str] | None = None, *, threshold: float = 0.0, top_k: int = 100
    ) -> Prediction:
        """The things of the current image, scored by class probability times mask probability.

        Without classes, the things of the training data. At most top_k (1 to 100) with scores
        from threshold on; a mask may come with several names, as in the COCO protocol.
        """
        top_k, threshold = checks.count(top_k, everything.TOP), checks.share(threshold)
        names, num_things = self._vocabulary(classes, None)
        image, probability, found = self._named_objects(names)
        slots, labels = everything.pairs(probability, num_things)
        masks: dict[int, np.ndarray] = {}
        quality = np.zeros(len(found.logits), np.float32)
        for slot in np.unique(slots).tolist():
            full = everything.enlarge(found.logits[slot], image.placement)
            mask = full > 0
            if mask.any():
                masks[slot] = mask
                quality[slot] = everything.sigmoid(full[mask]).mean()
        scores = probability[slots, labels] * quality[slots]
        order = np.argsort(-scores, kind="stable")
        order = order[(scores[order] >= threshold) & (quality[slots[order]] > 0)][:top_k]
        slots, labels = slots[order], labels[order].astype(np.int32)
        empty = np.zeros((0, *image.size), bool)
        return Prediction(
            masks=np.stack([masks[slot] for slot in slots.tolist()]) if len(slots) else empty,
            scores=scores[order].astype(np.float32),
            quality=quality[slots],
            texts=(None,) * len(slots),
            logits=found.logits[slots],
            memories=tuple(MaskMemory(found.embedding[slot]) for slot in slots),
            classes=names,
            labels=labels,
            probabilities=probability[slots, :-1],
            dropped_points=0,
        )

    def semantic(self, classes: Sequence[str] | None = None) -> SemanticPrediction:
        """The class of every pixel of the current image; without classes, those of the training data."""
        names, _ = self._vocabulary(classes, None)
        image, probability, found = self._named_objects(names)
        labels = everything.semantic(probability, found.logits, image.placement)
        return SemanticPrediction(labels, names)

    # References, sessions

    def reference(
        self, images: Sequence[np.ndarray], prompts: Sequence[Prompts | Mapping]
    ) -> Reference:
        """An object drawn on one or more images, to be found on others with predict(reference=...).

        One `Prompts` (or dict of its fields) for each image, of drawn kinds only.
        """
        if not isinstance(images, Sequence) or not len(images) or len(prompts) != len(images):
            raise ValueError(
                f"{_length(images)} images were given with {_length(prompts)} prompts; expected a "
                "list of at least one image and one prompt for each."
            )
        levels: list[list[np.ndarray]] = []
        pooled, counts = [], []
        for index, (image, asked) in enumerate(zip(images, prompts, strict=True)):
            asked = _prompts(asked, index)
            if asked.text is not None or asked.reference is not None or asked.memory is not None:
                raise ValueError(
                    f"prompts[{index}] of a reference has a text, reference or memory; expected "
                    "drawings only (give a text to predict beside the reference)."
                )
            asked.check_given()
            encoded = self.encode(checks.image(image, f"images[{index}]"))
            drawn = drawing.draw(asked, encoded.placement, self.config.data.max_points)
            count = int((drawn.positive & drawn.valid).sum())
            if not count:
                raise ValueError(f"prompts[{index}] of a reference has no positive point.")
            tokens = jax.device_get(
                self.programs.read(self.params, encoded.features, _visual_prompts(drawn))
            )
            levels.append([np.asarray(part[0], np.float32)[drawn.valid] for part in tokens.levels])
            pooled.append(tokens.pooled[0, 0] * count)
            counts.append(count)
        joined = [np.concatenate(parts) for parts in zip(*levels, strict=True)]
        kept = drawing.thin(np.arange(len(joined[0])), MAX_REFERENCE_POINTS)
        return Reference(
            model=self.fingerprint(),
            levels=tuple(level[kept] for level in joined),
            pooled=(np.sum(pooled, 0) / sum(counts)).astype(np.float32),
            count=sum(counts),
            num_images=len(images),
        )

    def session(self, image: np.ndarray) -> Session:
        """A conversation about one image: prompts added and undone, memory carried along."""
        encoded = self.encode(image)
        return Session(self, lambda: encoded, functools.partial(answer_sessions, self))

    def pool(self, *, max_bytes: int = 2**30, time_to_live: float = 1800.0) -> SessionPool:
        """Sessions of many users on this predictor; see `SessionPool`."""
        return SessionPool(self, max_bytes=max_bytes, time_to_live=time_to_live)

    def warm_up(self) -> None:
        """Compiles every program, so that no later request does."""
        image = self.encode(np.zeros((self.side, self.side, 3), np.uint8))
        self._objects(image)
        self.texts.table(("thing",))
        click = Prompts(points=[[0, 0]])
        shown = self.reference([np.zeros((8, 8, 3), np.uint8)], [click])
        for text in (None, "thing"):
            for reference in (None, shown):
                asked = dataclasses.replace(click, text=text, reference=reference)
                for together in {1, self.rows_together}:
                    self.answer([(image, asked)] * together)

    def fingerprint(self) -> str:
        """SHA-256 over the model's configuration and parameters: who made a reference."""
        if not self._fingerprint:
            digest = hashlib.sha256(
                json.dumps(dataclasses.asdict(self.config.model), sort_keys=True).encode()
            )
            for path, leaf in sorted(
                (jax.tree_util.keystr(path), leaf)
                for path, leaf in jax.tree_util.tree_leaves_with_path(self.params)
            ):
                digest.update(path.encode())
                digest.update(np.ascontiguousarray(jax.device_get(leaf)).tobytes())
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    # Inside

    def _current(self) -> EncodedImage:
        if self.image is None:
            raise ValueError("no image: call set_image(image) first.")
        return self.image

    def check(self, asked: Prompts) -> None:
        """Raises ValueError for a text, reference or memory that this model cannot use."""
        width = self.config.model.decoder.width
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
            if np.shape(kept) != (width,) or not np.isfinite(kept).all():
                raise ValueError(
                    f"memory is a {type(memory).__name__} of shape {np.shape(kept)}; expected the "
                    f"`memory` of an earlier prediction of this model: finite, of width {width}."
                )

    def _check_direction(self, asked: Prompts, drawn: drawing.Drawn) -> None:
        others = (asked.text, asked.reference, asked.memory)
        if not (drawn.positive & drawn.valid).any() and all(other is None for other in others):
            raise ValueError(
                "point_labels are all 0: negative points alone do not say which object is meant; "
                "add a positive point, a text, a reference or the memory of an earlier answer."
            )

    def _row(
        self, image: EncodedImage, asked: Prompts, drawn: drawing.Drawn, text: str | None
    ) -> Row:
        width = self.config.model.decoder.width
        reference, memory = asked.reference, asked.memory
        remembered = np.zeros(width) if memory is None else memory.embedding
        return Row(
            points=drawn.points,
            positive=drawn.positive,
            valid=drawn.valid,
            fitted=np.array(image.placement.resized, np.int32),
            memory=np.asarray(remembered, np.float32),
            remembers=np.bool_(memory is not None),
            phrase=None if text is None else self.texts.phrase(text),
            reference=None if reference is None else reference.tokens(),
        )

    def _decode(self, images: Sequence[EncodedImage], rows: Sequence[Row]) -> list[Answers]:
        """The answers of each row as NumPy, [1, ...] each; rows of one kind share decoder calls."""
        kinds: dict[tuple[bool, bool], list[int]] = {}
        for index, row in enumerate(rows):
            kinds.setdefault((row.phrase is None, row.reference is None), []).append(index)
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

    def _prediction(
        self,
        image: EncodedImage,
        answers: Sequence[Answers],
        texts: Sequence[str | None],
        dropped: int,
        vocabulary: tuple[str, ...],
        table: np.ndarray | None,
        top_k: int,
        threshold: float,
    ) -> Prediction:
        chosen = []
        for answer in answers:
            good = np.flatnonzero(answer.valid & (answer.score >= threshold))[:top_k]
            chosen.append(jax.tree.map(lambda array, good=good: array[good], answer))
        score, quality, logits, embedding = (
            np.concatenate([getattr(part, name) for part in chosen])
            for name in ("score", "quality", "logits", "embedding")
        )
        masks = np.zeros((len(score), *image.size), bool)
        for index, low in enumerate(logits):
            masks[index] = everything.enlarge(low, image.placement) > 0
        labels = np.full(len(score), -1, np.int32)
        probabilities = np.zeros((len(score), 0), np.float32)
        if table is not None:
            probabilities = self._names(image, logits, table)
            labels = probabilities.argmax(-1).astype(np.int32)
        return Prediction(
            masks=masks,
            scores=score,
            quality=quality,
            texts=tuple(
                text
                for text, part in zip(texts, chosen, strict=True)
                for _ in range(len(part.score))
            ),
            logits=logits,
            memories=tuple(MaskMemory(row) for row in embedding),
            classes=vocabulary,
            labels=labels,
            probabilities=probabilities,
            dropped_points=dropped,
        )

    def _names(self, image: EncodedImage, logits: np.ndarray, table: np.ndarray) -> np.ndarray:
        """float32 [N, C - 1], what the object query with the most similar mask says.

        Training names the object queries only; the slots that answer prompts learn masks.
        """
        objects = self._objects(image)
        probability = self._class_probability(objects.names, table)
        height, width = (-(-edge // 4) for edge in image.placement.resized)
        inside = np.s_[:, :height, :width]
        overlap = everything.alike(logits[inside] > 0, objects.logits[inside] > 0)  # [N, Q]
        return probability[overlap.argmax(-1)][:, :-1]

    def _objects(self, image: EncodedImage) -> ObjectAnswers:
        if image.objects is None:
            image.objects = jax.device_get(self.programs.objects(self.params, image.features))
        return image.objects

    def _named_objects(self, names: tuple[str, ...]):
        """(current image, class probability [Q, C], object answers); the last class is none."""
        image = self._current()
        found = self._objects(image)
        return image, self._class_probability(found.names, self.texts.table(names)), found

    def _class_probability(self, names: np.ndarray, table: np.ndarray) -> np.ndarray:
        """float32 [Q, C] of class embeddings [Q, V]; as `models.seem.class_logits`, softmaxed."""
        length = np.sqrt(np.square(names).sum(-1, keepdims=True)) + 1e-7
        scale = np.exp(np.float32(jax.device_get(self.params["logit_scale"])))
        return everything.softmax(scale * ((names / length) @ table.T)).astype(np.float32)

    def _vocabulary(self, classes, stuff) -> tuple[tuple[str, ...], int]:
        """(names, things first; how many are things)."""
        if classes is None and stuff is None:
            if not self.classes:
                raise ValueError(
                    "classes is missing: this checkpoint's data set is not here to name them; give "
                    "a list of names."
                )
            return self.classes, self.num_things
        things = () if classes is None else checks.classes(classes)
        stuff = () if stuff is None else checks.classes(stuff, "stuff")
        return checks.classes((*things, *stuff), "classes and stuff together"), len(things)


def _questions(asked, index: int) -> list[Prompts]:
    """The prompts of one image as a list."""
    asked = [asked] if isinstance(asked, Prompts | Mapping) else asked
    if not isinstance(asked, Sequence) or isinstance(asked, str):
        raise ValueError(
            f"prompts[{index}] is a {type(asked).__name__}; expected Prompts, a dict, or a list."
        )
    return [_prompts(question, index) for question in asked]


def _prompts(asked, index: int) -> Prompts:
    if isinstance(asked, Prompts):
        return asked
    if not isinstance(asked, Mapping):
        raise ValueError(
            f"prompts[{index}] is or holds a {type(asked).__name__}; expected Prompts or a dict."
        )
    known = {field.name for field in dataclasses.fields(Prompts)}
    unknown = sorted(map(str, set(asked) - known))
    if unknown:
        raise ValueError(f"prompts[{index}] has {unknown}; expected some of {sorted(known)}.")
    return Prompts(**asked)


def _visual_prompts(drawn: drawing.Drawn) -> VisualPrompts:
    return VisualPrompts(
        points=drawn.points[None],
        prompt=np.zeros((1, len(drawn.points)), np.int32),
        positive=drawn.positive[None],
        valid=drawn.valid[None],
    )


def _length(value) -> str:
    return str(len(value)) if isinstance(value, Sequence) else f"a {type(value).__name__}"
