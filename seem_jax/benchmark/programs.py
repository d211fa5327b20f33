"""The programs that are measured, and the shapes they take: what training and the predictor run."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from seem_jax import interaction, sharding
from seem_jax.benchmark import inputs
from seem_jax.config import Config, MeshConfig
from seem_jax.models.seem import SEEM, build, class_logits, mask_logits, remember
from seem_jax.training import state as states
from seem_jax.training.step import make_train_step


@dataclasses.dataclass(frozen=True)
class Program:
    function: Callable
    arguments: tuple  # trees of jax.ShapeDtypeStruct


@dataclasses.dataclass(frozen=True)
class Parts:
    """A model on one device, and what its programs take."""

    config: Config
    model: SEEM
    mesh: Mesh
    params: Any  # shapes
    features: Any  # shapes of Features of one image

    def maps(self, batch: int = 1) -> Program:
        """Backbone and pixel decoder alone, from normalised images."""

        def maps(params, images):
            return self.model.apply({"params": params}, images, method="maps")

        shape = inputs.images(self.config.data, batch).shape
        return Program(maps, (self.params, jax.ShapeDtypeStruct(shape, np.float32)))

    def encode(self, batch: int = 1) -> Program:
        """Of images, with the keys and values of all decoder layers."""
        images = inputs.images(self.config.data, batch)
        return Program(functools.partial(_encode, self.model), (self.params, images))

    def decode(self) -> Program:
        """Of the object queries: names and masks at stride 4."""
        table = self._table()
        return Program(functools.partial(_decode, self.model), (self.params, self.features, table))

    def panoptic(self, batch: int = 1) -> Program:
        """Encode and decode in one program."""

        def everything(params, images, table):
            return _decode(self.model, params, _encode(self.model, params, images), table)

        images = inputs.images(self.config.data, batch)
        return Program(everything, (self.params, images, self._table()))

    def click(self, points: int) -> Program:
        """A drawn prompt of so many points on an encoded image; the object queries rest."""
        memory = inputs.memory(self.features, 1, self.config.model.decoder.width)
        arguments = (self.params, self.features, inputs.prompts(points), memory)
        return Program(functools.partial(_click, self.model), arguments)

    def one_round(self) -> Program:
        """A round of training: all prompts of an image, and the clicks that follow."""
        model, data, stop_iou = self.model, self.config.data, self.config.round_stop_iou

        def one_round(params, features, prompts, memory, truth, prompted):
            memory, logits = _click(model, params, features, prompts, memory)
            return memory, interaction.next_clicks(logits, truth, prompted, stop_iou)

        number = data.max_prompts
        points = data.max_points + self.config.max_rounds * number * interaction.POINTS_PER_CLICK
        area = (1, number, data.image_size, data.image_size)
        arguments = (
            self.params,
            self.features,
            inputs.prompts(points),
            inputs.memory(self.features, number, self.config.model.decoder.width),
            jax.ShapeDtypeStruct(area, bool),
            jax.ShapeDtypeStruct(area, np.uint8),
        )
        return Program(one_round, arguments)

    def train_step(self, *, rounds: bool, batch: int = 1) -> Program:
        """Inside `sharding.use(mesh)`; without rounds, the supervised pass alone."""
        config = self.config if rounds else dataclasses.replace(self.config, max_rounds=0)
        state = states.abstract(self.model, config, self.mesh)
        return Program(
            make_train_step(self.model, config, state),
            (state, inputs.shapes_of(inputs.batch(config.data, batch)), inputs.vocabulary(config)),
        )

    def _table(self):
        shape = (inputs.NUM_CLASSES, self.model.config.text.projection)
        return jax.ShapeDtypeStruct(shape, np.float32)


def parts(config: Config) -> Parts:
    """The parts of a configuration on the first device, by shapes alone."""
    config = copy.deepcopy(config)
    config.data.batch_size = 1
    config.mesh = MeshConfig(1, 1, 1)
    model, mesh = build(config.model), sharding.make_mesh(config.mesh, jax.devices()[:1])
    params = inputs.shapes_of(states.merge(states.abstract(model, config, mesh)))
    images = inputs.images(config.data)
    features = jax.eval_shape(functools.partial(_encode, model), params, images)
    return Parts(config, model, mesh, params, features)


def _encode(model: SEEM, params, images):
    return model.apply({"params": params}, images, method="encode_image")


def _decode(model: SEEM, params, features, table):
    objects = model.apply({"params": params}, features, method="decode").object
    names = class_logits(objects.class_embedding, table, params["logit_scale"])
    return names, mask_logits(objects.mask_embedding, features)


def _click(model: SEEM, params, features, prompts, memory):
    """(memory, mask logits) of drawn prompts on an encoded image."""
    variables, number = {"params": params}, memory.valid.shape[1]
    visual = model.apply(variables, features, prompts, number, method="encode_prompts")
    outputs = model.apply(variables, features, None, visual, memory, objects=False, method="decode")
    memory = remember(outputs, visual)
    return memory, mask_logits(memory.mask_embedding, features)
