"""Every loss by its definition in NumPy float64, pixel lists and plain sums; and a batch to try them on."""

import numpy as np

IGNORE = 255


def sample(num_classes=5, rows=2, seed=0, absent=()):
    """A batch with ignored pixels and a weight map, and logits; classes in ``absent`` have no label."""
    rng = np.random.default_rng(seed)
    logits = (3 * rng.standard_normal((rows, 5, 7, num_classes))).astype(np.float32)
    label = rng.choice([c for c in range(num_classes) if c not in absent], (rows, 5, 7))
    label = np.where(rng.random(label.shape) < 0.3, IGNORE, label).astype(np.int32)
    weight = np.where(rng.random(label.shape) < 0.2, 0, 3 * rng.random(label.shape)).astype(np.float32)
    return logits, {"label": label, "valid": np.ones(rows, bool), "weight": weight}


def counted(batch, num_classes):
    """bool[B, H, W]."""
    label = batch["label"]
    keep = (label >= 0) & (label < num_classes) & (label != IGNORE) & batch["valid"][:, None, None]
    return keep & (batch["weight"] > 0) if "weight" in batch else keep


def _pixels(logits, batch):
    """(logits [n, K], labels [n], weights [n]) of the pixels that count."""
    keep = counted(batch, logits.shape[-1])
    weight = batch["weight"] if "weight" in batch else np.ones(keep.shape)
    return logits[keep].astype(np.float64), batch["label"][keep], weight[keep].astype(np.float64)


def softmax(z):
    """Over the last axis."""
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def cross_entropy(logits, batch, *, class_weights=None, label_smoothing=0.0, top_k=None):
    """The hardest pixels' weighted mean."""
    z, y, m = _pixels(logits, batch)
    w = np.ones(z.shape[1]) if class_weights is None else np.asarray(class_weights)
    log_q = np.log(softmax(z))
    own = -(1 - label_smoothing) * w[y] * log_q[np.arange(len(y)), y]
    terms = m * (own - label_smoothing / z.shape[1] * (w * log_q).sum(axis=1))
    kept = np.argsort(-terms, kind="stable")[: max(1, int(np.floor((top_k or 1) * len(y) + 1e-9)))]
    return terms[kept].sum() / (m * w[y])[kept].sum()


def tversky(logits, batch, *, alpha=0.5, beta=0.5, gamma=1.0, smooth=0.0, log_loss=False, classes=None,
            class_weights=None):  # fmt: skip
    """A loop over classes."""
    z, y, m = _pixels(logits, batch)
    q, per_class, factors = softmax(z), [], []
    for c in range(z.shape[1]) if classes is None else classes:
        hit, false, missed = ((m * q[:, c] * (y == c)).sum(), (m * q[:, c] * (y != c)).sum(),
                              (m * (1 - q[:, c]) * (y == c)).sum())  # fmt: skip
        score = (hit + smooth) / max(hit + alpha * false + beta * missed + smooth, 1e-7)
        value = -np.log(max(score, 1e-7)) if log_loss else 1 - score
        per_class.append(value if (y == c).any() else 0.0)
        factors.append(1.0 if class_weights is None else class_weights[c])
    return (np.dot(per_class, factors) / np.sum(factors)) ** gamma


def dice(logits, batch, **options):
    """2 TP / (2 TP + FP + FN) is Tversky at one half."""
    return tversky(logits, batch, alpha=0.5, beta=0.5, **options)


def jaccard(logits, batch, **options):
    """TP / (TP + FP + FN) is Tversky at one."""
    return tversky(logits, batch, alpha=1.0, beta=1.0, **options)


def focal(logits, batch, *, alpha=None, gamma=2.0, normalized=False, class_weights=None):
    """A loop over classes of binary focal losses."""
    z, y, m = _pixels(logits, batch)
    per_class = []
    for c in range(z.shape[1]):
        p = 1 / (1 + np.exp(-np.where(y == c, z[:, c], -z[:, c])))
        focus = (1 - p) ** gamma
        a = 1.0 if alpha is None else np.where(y == c, alpha, 1 - alpha)
        value = (m * a * focus * -np.log(p)).sum()
        per_class.append(value / max((m * focus).sum(), 1e-6) if normalized else value)
    factors = np.ones(z.shape[1]) if class_weights is None else np.asarray(class_weights)
    return np.dot(per_class, factors) / factors.sum() / m.sum()


def _lovasz(z, y, m):
    """The extension as the sum over sorted errors of error times increase of the weighted Jaccard loss of a set."""
    q, values = softmax(z), []
    for c in np.unique(y):
        error = np.where(y == c, 1 - q[:, c], q[:, c])
        order, own = np.argsort(-error, kind="stable"), m * (y == c)
        previous = value = 0.0
        for n in range(1, len(y) + 1):
            wrong = order[:n]
            lost, added = own[wrong].sum(), (m - own)[wrong].sum()
            jaccard_loss = 1 - (own.sum() - lost) / (own.sum() + added)
            value += error[order[n - 1]] * (jaccard_loss - previous)
            previous = jaccard_loss
        values.append(value)
    return np.mean(values)


def lovasz(logits, batch, *, per_image=False):
    """Over all counted pixels, or the mean of the images'."""
    if not per_image:
        return _lovasz(*_pixels(logits, batch))
    images = ({k: v[i : i + 1] for k, v in batch.items()} for i in range(len(logits)))
    each = [_pixels(logits[i : i + 1], image) for i, image in enumerate(images)]
    return np.mean([_lovasz(*pixels) for pixels in each if len(pixels[1])])
