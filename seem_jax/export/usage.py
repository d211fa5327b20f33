"""What stands beside an exported model."""

TEXT = """\
# An exported SEEM model

`load.py` runs it; it needs jax, numpy and flatbuffers, nothing else. Every program takes any batch size b.

    from load import load
    model = load(".")
    features = model["encode"](images)
    answers = model["answer"](features, rows)

| file | arguments | result |
| --- | --- | --- |
| encode | images uint8 [b, S, S, 3] | features, a dict for the others |
| answer | features, rows | masks that answer each row |
| answer_text | features, rows with "phrase" | the same |
| answer_reference | features, rows with "reference" | the same |
| answer_text_reference | features, rows with both | the same |
| objects | features | what the object queries say |
| sentence | ids int32 [b, J], valid bool [b, J] | (tokens [b, J, V], sentence [b, V]) |
| classes | ids int32 [n, b, J], valid: n names in b sentences each | [n, V] unit rows |
| read | features, points of another image | {"levels", "pooled"} for "reference" |

about.json has the sizes: S image_size, J phrase_tokens, A answers, R reference_points; a logit stands for
mask_stride x mask_stride pixels. An image keeps its shape, is made to fit into the square, lies in its top
left corner and is padded with grey (about.json: padding).

`rows` is a dict; k is any number of points, those that are not valid are padding:

    points     float32 [b, k, 2]   (x, y) = pixel of the square / S; a click is 3 x 3 pixels, so 9 points
    positive   bool [b, k]         this object, or not this
    valid      bool [b, k]
    fitted     int32 [b, 2]        (height, width) of the image in the square, pixels
    memory     float32 [b, D]      "embedding" of an earlier answer on the same image, else zeros
    remembers  bool [b]            whether there is one
    phrase     {"tokens": [b, J, V], "valid": bool [b, J], "sentence": [b, V]}, of `sentence`
    reference  {"levels": 3 x [b, R, D], "valid": bool [b, R], "pooled": [b, D], "count": float32 [b]}

`answers` is a dict of at most A different masks a row, best first: "logits" [b, A, S/4, S/4] (a mask is where
they are above 0), "embedding" [b, A, D], "score" and "quality" [b, A] in [0, 1], "valid" bool [b, A].

`objects` gives "logits" [b, Q, S/4, S/4], "embedding" [b, Q, D] and "names" [b, Q, V]: the class of a query is
the softmax of exp(weights["logit_scale"]) times the cosine of its name with the rows of `classes`, the last of
which is "no object" (about.json: templates). Token ids come from tokenizer.model (sentencepiece): bos_id, the
pieces of the text in lower case, eos_id, then pad_id where valid is False. A CLIP vocabulary splits the text by
CLIP's own pattern before.

A click, from the picture to its mask (with Pillow):

    import json

    import numpy as np
    from load import load
    from PIL import Image

    with open("about.json") as file:
        about = json.load(file)
    model, side = load("."), about["image_size"]

    photo = Image.open("photo.jpg").convert("RGB")
    scale = side / max(photo.size)
    width, height = (max(1, round(edge * scale)) for edge in photo.size)
    square = np.full((1, side, side, 3), about["padding"], np.uint8)
    square[0, :height, :width] = photo.resize((width, height), Image.Resampling.BILINEAR)
    features = model["encode"](square)

    x, y = 60, 40  # where the click is, in pixels of the photo
    column, row = int((x + 0.5) * scale), int((y + 0.5) * scale)
    near = np.stack(np.meshgrid([-1, 0, 1], [-1, 0, 1]), -1).reshape(1, 9, 2)
    pixels = near + [column, row]
    rows = {
        "points": (pixels / side).astype(np.float32),
        "positive": np.ones((1, 9), bool),
        "valid": ((pixels >= 0) & (pixels < side)).all(-1),
        "fitted": np.array([[height, width]], np.int32),
        "memory": np.zeros((1, features["mask"].shape[-1]), np.float32),
        "remembers": np.zeros(1, bool),
    }
    answers = model["answer"](features, rows)
    logits = Image.fromarray(np.array(answers["logits"][0, 0], np.float32))
    logits = logits.resize((side, side), Image.Resampling.BILINEAR)
    logits = logits.crop((0, 0, width, height)).resize(photo.size, Image.Resampling.BILINEAR)
    Image.fromarray(np.asarray(logits) > 0).save("mask.png")
"""
