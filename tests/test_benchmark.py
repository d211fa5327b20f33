import jax
import jax.numpy as jnp

from seem_jax.benchmark import measure

SIDE, TURNS = 32, 7
ONE_PRODUCT = 2 * SIDE**3


def repeated(x, w):
    def turn(x, _):
        return x @ w, None

    return jax.lax.scan(turn, x, None, length=TURNS)[0]


def test_every_turn_of_a_loop_counts():
    shape = jax.ShapeDtypeStruct((SIDE, SIDE), jnp.float32)
    once = measure(lambda x, w: x @ w, shape, shape)
    looped = measure(repeated, shape, shape)
    assert ONE_PRODUCT <= once.flop < 1.1 * ONE_PRODUCT
    assert TURNS * ONE_PRODUCT <= looped.flop < 1.1 * TURNS * ONE_PRODUCT


def test_a_convolution_counts_its_kernel():
    image = jax.ShapeDtypeStruct((1, 16, 16, 8), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, 8, 4), jnp.float32)

    def turn(image, kernel):
        def body(total, _):
            out = jax.lax.conv_general_dilated(
                image, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            return total + out.sum(), None

        return jax.lax.scan(body, jnp.float32(0), None, length=3)[0]

    one = 2 * 3 * 3 * 8 * 4 * 16 * 16
    extra = measure(turn, image, kernel).flop
    assert 2 * one <= extra <= 3.1 * one
