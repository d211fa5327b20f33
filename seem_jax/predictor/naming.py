"""Names for masks: what the object queries of an image say, under any vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from seem_jax.predictor import checks, everything
from seem_jax.predictor.decoding import EncodedImage
from seem_jax.predictor.programs import MASK_STRIDE, ObjectAnswers, Programs
from seem_jax.predictor.texts import Texts


class Naming:
    """The object queries' side of a predictor."""

    def __init__(
        self,
        programs: Programs,
        params: dict,
        texts: Texts,
        classes: Sequence[str],
        num_things: int | None,
    ):
        """classes is the vocabulary where a call gives none, num_things of them things (or all)."""
        self.programs, self.params, self.texts = programs, params, texts
        self.classes = tuple(classes)
        self.num_things = len(self.classes) if num_things is None else num_things
        self.scale = np.exp(np.float32(jax.device_get(params["logit_scale"])))

    def vocabulary(self, classes, stuff) -> tuple[tuple[str, ...], int]:
        """(names, things first; how many are things). ValueError where there are none."""
        if classes is None and stuff is None:
            if not self.classes:
                raise ValueError(
                    "classes is missing: neither beside this checkpoint nor with its data set are any "
                    "names; give a list of them."
                )
            return self.classes, self.num_things
        things = () if classes is None else checks.classes(classes)
        stuff = () if stuff is None else checks.classes(stuff, "stuff")
        return checks.classes((*things, *stuff), "classes and stuff together"), len(things)

    def objects(self, image: EncodedImage) -> ObjectAnswers:
        """What the object queries say about an image; asked once, then kept with it."""
        if image.objects is None:
            found = jax.device_get(self.programs.objects(self.params, image.features))
            image.objects = jax.tree.map(lambda array: array[0], found)
        return image.objects

    def probability(self, objects: ObjectAnswers, names: tuple[str, ...]) -> np.ndarray:
        """float32 [Q, C], the class of each query; the last column is "none of them".

        As `models.seem.class_logits`, softmaxed.
        """
        length = np.sqrt(np.square(objects.names).sum(-1, keepdims=True)) + 1e-7
        cosine = (objects.names / length) @ self.texts.table(names).T
        return everything.softmax(self.scale * cosine).astype(np.float32)

    def of_masks(
        self, image: EncodedImage, logits: np.ndarray, names: tuple[str, ...]
    ) -> np.ndarray:
        """float32 [N, C - 1], what the object query with the most similar mask says of each mask.

        Training names the object queries only; the slots that answer prompts learn masks.
        """
        objects = self.objects(image)
        probability = self.probability(objects, names)
        height, width = (-(-edge // MASK_STRIDE) for edge in image.placement.resized)
        inside = np.s_[:, :height, :width]
        overlap = everything.alike(logits[inside] > 0, objects.logits[inside] > 0)  # [N, Q]
        return probability[overlap.argmax(-1)][:, :-1]
