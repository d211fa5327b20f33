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
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from seem_jax import checkpoint, kept_files
from seem_jax.config import Config
from seem_jax.data import transforms
from seem_jax.models.language.tokenizer import Tokenizer
from seem_jax.models.seem import build
from seem_jax.predictor import checks, everything
from seem_jax.predictor.decoding import Decoding, EncodedImage, Question
from seem_jax.predictor.naming import Naming
from seem_jax.predictor.programs import MAX_ANSWERS, Programs
from seem_jax.predictor.prompts import MaskMemory, Prompts, prompts_of
from seem_jax.predictor.reference import Reference
from seem_jax.predictor.results import PanopticPrediction, Prediction, SemanticPrediction
from seem_jax.predictor.selection import select
from seem_jax.predictor.session import Session, SessionPool, answer_sessions
from seem_jax.predictor.texts import Texts

ROWS_TOGETHER = 8  # questions of one decoder call on an accelerator
Asked = Prompts | Sequence[Prompts]


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
        self.side = config.evaluation.image_size or config.data.image_size
        if image_size is not None:
            self.side = image_size
        step = config.model.backbone.size_divisor
        if self.side % step or self.side <= 0:
            raise ValueError(f"image_size = {self.side}; expected a positive multiple of {step}.")
        on_cpu = jax.default_backend() == "cpu"
        self.rows_together = rows_together or (1 if on_cpu else ROWS_TOGETHER)
        self.image: EncodedImage | None = None
        self._fingerprint = ""
        self.programs = programs = Programs(build(config.model))
        self.texts = texts = Texts(programs, params, tokenizer, config)
        self.naming = Naming(programs, params, texts, classes, num_things)
        self.decoding = Decoding(
            programs, params, config, texts, self.rows_together, self.fingerprint
        )

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

        The tokenizer and the default vocabulary lie beside the checkpoint (`kept_files`); those of
        the run's data set serve where they do not, and `tokenizer` comes before both. The embeddings
        of a vocabulary are kept in DIRECTORY/class_tables for the next process. Raises ValueError
        where something is missing.
        """
        params, config = checkpoint.restore_params(directory, step)
        classes, num_things = kept_files.classes(directory, config)
        predictor = cls(
            params,
            config,
            Tokenizer(tokenizer or kept_files.tokenizer(directory, config)),
            classes=classes,
            num_things=num_things,
            image_size=image_size,
        )
        predictor.texts.tables.cache = Path(directory) / "class_tables"
        return predictor

    @property
    def classes(self) -> tuple[str, ...]:
        """The vocabulary of calls that name none, things first."""
        return self.naming.classes

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
        features = self.programs.encode(self.params, self.square(image)[None])
        return EncodedImage(self.placement(image.shape[:2]), features)

    def square(self, image: np.ndarray) -> np.ndarray:
        """uint8 [side, side, 3], what the model sees of an image uint8 [H, W, 3]."""
        return transforms.place_image(image, self.placement(image.shape[:2]))

    def placement(self, size: tuple[int, int]) -> transforms.Placement:
        """Where an image of this (height, width) lies in the model's square."""
        return transforms.fitted(size, self.side)

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
        questions: Sequence[Question],
        *,
        classes: Sequence[str] | None = None,
        top_k: int = 1,
        threshold: float = 0.0,
    ) -> list[Prediction]:
        """One prediction for each question, about the same or different encoded images."""
        top_k, threshold = checks.count(top_k, MAX_ANSWERS), checks.share(threshold)
        vocabulary = () if classes is None else checks.classes(classes)
        if vocabulary:
            self.texts.table(vocabulary)  # a name that cannot be read is told before work begins
        replies = self.decoding.ask(questions)
        return [
            select(image, reply, self.naming, vocabulary, top_k, threshold)
            for (image, _), reply in zip(questions, replies, strict=True)
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
        names, num_things = self.naming.vocabulary(classes, stuff)
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
        names, num_things = self.naming.vocabulary(classes, None)
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
        names, _ = self.naming.vocabulary(classes, None)
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
        shown = []
        for index, (image, asked) in enumerate(zip(images, prompts, strict=True)):
            asked = prompts_of(asked, f"prompts[{index}]")
            if asked.text is not None or asked.reference is not None or asked.memory is not None:
                raise ValueError(
                    f"prompts[{index}] of a reference has a text, reference or memory; expected "
                    "drawings only (give a text to predict beside the reference)."
                )
            asked.check_given()
            encoded = self.encode(checks.image(image, f"images[{index}]"))
            part = self.decoding.show(encoded, asked)
            if not part.count:
                raise ValueError(f"prompts[{index}] of a reference has no positive point.")
            shown.append(part)
        return Reference.joined(shown)

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
        self.naming.objects(image)
        self.texts.table(("thing",))
        places = np.linspace(0, self.side - 1, 8)
        click = Prompts(points=[[0, 0]])
        many = Prompts(points=np.stack(np.meshgrid(places, places), -1).reshape(-1, 2))
        shown = self.decoding.show(image, click)
        for drawn, text, reference in itertools.product(
            (click, many), (None, "thing"), (None, shown)
        ):
            asked = dataclasses.replace(drawn, text=text, reference=reference)
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

    def _named_objects(self, names: tuple[str, ...]):
        """(current image, class probability [Q, C], object answers); the last class is none."""
        image = self._current()
        found = self.naming.objects(image)
        return image, self.naming.probability(found, names), found


def _questions(asked, index: int) -> list[Prompts]:
    """The prompts of one image as a list."""
    asked = [asked] if isinstance(asked, Prompts | Mapping) else asked
    if not isinstance(asked, Sequence) or isinstance(asked, str):
        raise ValueError(
            f"prompts[{index}] is a {type(asked).__name__}; expected Prompts, a dict, or a list."
        )
    return [prompts_of(question, f"prompts[{index}]") for question in asked]


def _length(value) -> str:
    return str(len(value)) if isinstance(value, Sequence) else f"a {type(value).__name__}"
