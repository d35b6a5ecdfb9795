"""Running second moments of (z, y) per channel, and the fit they give in closed form.

z: real value of the quantized op's accumulator (before requantization, clamp and activation); y: the target.

(1) a = Cov(z, y) / Var(z), b = mean(y) - a mean(z) minimise sum (y - a z - b)^2
(2) with e = y - z: error before = Var(e) + mean(e)^2; the offset alone removes mean(e)^2
(3) shrunk toward the identity: a = 1 + Cov(z, e) / (Var(z) (1 + k / n)), offset times n / (n + k),
    n = effective number of independent samples

n counts samples, not positions, where positions of one sample move together: n = samples * Var(e) / Var(mean of e
over one sample's positions), between the number of samples and the number of positions.

Source: Tang, Fu, Yu, Wu, "QwT-v2", arXiv 2505.20932 (the per-channel affine); the shrinkage and the gates are ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SHRINKAGE = 32.0


@dataclass(frozen=True)
class Moments:
    """Sums over positions, centred on the identity: float64, (channels,) each.

    count: positions; samples: samples; z, e: means; zz, ze, ee: centred sums of products; ss: sum over samples of
    the squared deviation of that sample's mean of e from the mean over all.
    """

    count: int
    samples: int
    z: np.ndarray
    e: np.ndarray
    zz: np.ndarray
    ze: np.ndarray
    ee: np.ndarray
    ss: np.ndarray

    @staticmethod
    def of(z: np.ndarray, y: np.ndarray, keep: np.ndarray | None = None) -> Moments:
        """Moments of one batch.

        Args:
            z, y: float, (samples, positions, channels).
            keep: bool (samples, positions), False for positions that don't count, such as padding; None for all. At
                least one position counts.
        """
        samples, positions, _ = z.shape
        e = y - z
        if keep is None:
            count, per = samples * positions, np.full((samples, 1), positions, np.float64)
        else:
            z, e = z * keep[:, :, None], e * keep[:, :, None]
            count, per = int(keep.sum()), np.maximum(keep.sum(1, dtype=np.float64), 1)[:, None]
        zm, em = z.sum((0, 1), dtype=np.float64) / count, e.sum((0, 1), dtype=np.float64) / count
        # centred, then summed in float32 over one sample's positions and in float64 over samples
        zc, ec = z - zm.astype(z.dtype), e - em.astype(e.dtype)
        if keep is not None:
            zc, ec = zc * keep[:, :, None], ec * keep[:, :, None]
        per_sample = ec.sum(1, dtype=np.float64) / per

        def products(p: np.ndarray, q: np.ndarray) -> np.ndarray:
            return np.einsum("npc,npc->nc", p, q).sum(0, dtype=np.float64)

        return Moments(
            count,
            samples,
            zm,
            em,
            products(zc, zc),
            products(zc, ec),
            products(ec, ec),
            np.einsum("nc,nc->c", per_sample, per_sample),
        )

    def merge(self, other: Moments) -> Moments:
        """Moments of both sets together (Chan's update)."""
        n = self.count + other.count
        dz, de = other.z - self.z, other.e - self.e
        w = self.count * other.count / n
        ws = self.samples * other.samples / (self.samples + other.samples)
        return Moments(
            n,
            self.samples + other.samples,
            self.z + dz * (other.count / n),
            self.e + de * (other.count / n),
            self.zz + other.zz + dz * dz * w,
            self.ze + other.ze + dz * de * w,
            self.ee + other.ee + de * de * w,
            self.ss + other.ss + de * de * ws,
        )

    def error(self, gain: np.ndarray, offset: np.ndarray) -> np.ndarray:
        """Mean squared error per channel of y against gain * z + offset."""
        g = 1 - gain  # y - gain z - offset = e + g z - offset
        variance = self.ee + 2 * g * self.ze + g * g * self.zz
        return np.maximum(variance, 0) / self.count + np.square(self.e + g * self.z - offset)

    @property
    def target_power(self) -> np.ndarray:
        """Mean square of y per channel."""
        return (self.zz + 2 * self.ze + self.ee) / self.count + np.square(self.z + self.e)

    def effective_samples(self) -> np.ndarray:
        """n of equation (3), per channel."""
        if self.samples < 2:
            return np.full_like(self.z, self.samples)
        variance = self.ee / self.count
        between = self.ss / (self.samples - 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            n = np.where(between > 0, self.samples * variance / between, self.samples)
        return np.clip(n, self.samples, self.count)

    def fit(self, gain_limits: tuple[float, float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Equation (3).

        Returns: gain (channels,) within ``gain_limits``, the offset that goes with it, and the offset for gain 1.
        """
        n = self.effective_samples()
        alone = self.e * (n / (n + SHRINKAGE))
        floor = 1e-12 * np.maximum(self.zz.max(initial=0.0), 1e-300)
        alive = self.zz > floor
        slope = np.where(alive, self.ze / np.where(alive, self.zz, 1.0), 0.0) / (1 + SHRINKAGE / n)
        gain = np.clip(1 + slope, *gain_limits)
        # the mean that remains after the gain, shrunk like the offset alone
        offset = (self.e + (1 - gain) * self.z) * (n / (n + SHRINKAGE))
        return gain, offset, alone
