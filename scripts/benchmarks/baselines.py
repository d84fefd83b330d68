"""What people write: the network of the CIFAR-10 notebook in plain PyTorch, and a dump into LMDB.

Nothing here is ours: no lookup in pieces, no layout, no precision but float32. Letters: B batch, C channels, D code
dimension, K number of codes, N vectors.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset


class OneHotEMA(nn.Module):
    """The quantiser of the notebook (van den Oord et al. 2017, appendix A.1): one-hot rows, moving averages."""

    def __init__(self, num_codes: int = 512, code_dim: int = 64, decay: float = 0.99, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.decay, self.epsilon = decay, epsilon
        self.register_buffer("codebook", torch.randn(num_codes, code_dim))
        self.register_buffer("counts", torch.zeros(num_codes))
        self.register_buffer("sums", self.codebook.clone())

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return vectors [B, D, height, width], the commitment loss and codes [B, height, width]."""
        z = z.permute(0, 2, 3, 1).contiguous()
        flat = z.view(-1, z.shape[-1])
        distances = (
            flat.pow(2).sum(1, keepdim=True) - 2 * flat @ self.codebook.t() + self.codebook.pow(2).sum(1)
        )  # [N, K]
        codes = distances.argmin(1)
        one_hot = F.one_hot(codes, self.codebook.shape[0]).type(flat.dtype)
        vectors = (one_hot @ self.codebook).view_as(z)
        if self.training:
            with torch.no_grad():
                self.counts.mul_(self.decay).add_(one_hot.sum(0), alpha=1 - self.decay)
                self.sums.mul_(self.decay).add_(one_hot.t() @ flat, alpha=1 - self.decay)
                n = self.counts.sum()
                counts = (self.counts + self.epsilon) / (n + self.codebook.shape[0] * self.epsilon) * n
                self.codebook.copy_(self.sums / counts.unsqueeze(1))
        loss = F.mse_loss(vectors.detach(), z)
        vectors = z + (vectors - z).detach()
        return vectors.permute(0, 3, 1, 2).contiguous(), loss, codes.view(z.shape[:-1])


class Residual(nn.Module):
    """Two residual blocks: 3x3 to 32 channels, 1x1 back."""

    def __init__(self, width: int = 128, hidden: int = 32, num_blocks: int = 2) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.ReLU(), nn.Conv2d(width, hidden, 3, padding=1), nn.ReLU(), nn.Conv2d(hidden, width, 1))
            for _ in range(num_blocks)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the stack's output, [B, C, height, width]."""
        for block in self.blocks:
            x = x + block(x)
        return F.relu(x)


class PlainVQVAE(nn.Module):
    """Encoder, quantiser and decoder of the notebook: 32x32x3 to 8x8 codes of 512."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 64, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(64, 128, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(128, 128, 3, padding=1),
            Residual(),
            nn.Conv2d(128, 64, 1),
        )
        self.quantizer = OneHotEMA()
        self.decoder = nn.Sequential(
            nn.Conv2d(64, 128, 3, padding=1),
            Residual(),
            nn.ConvTranspose2d(128, 64, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(64, 3, 4, stride=2, padding=1),
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return reconstruction and commitment loss."""
        vectors, loss, _ = self.quantizer(self.encoder(images))
        return self.decoder(vectors), loss


class PlainTraining:
    """The notebook's step: Adam at 3e-4, mean squared error and a quarter of the commitment loss."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.model = PlainVQVAE().to(self.device).train()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=3e-4)

    def step(self, pixels: Tensor) -> float:
        """Take one step on uint8 pixels [B, 32, 32, 3] and return the loss, read as a progress line would."""
        images = pixels.to(self.device).permute(0, 3, 1, 2).float() / 127.5 - 1
        copies, commitment = self.model(images)
        loss = F.mse_loss(copies, images) + 0.25 * commitment
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()


class Pictures(Dataset):
    """Encoded pictures, decoded one by one."""

    def __init__(self, encoded: Sequence[bytes]) -> None:
        self.encoded = encoded

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        picture = Image.open(io.BytesIO(self.encoded[row])).convert("RGB")
        pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
        return pixels.view(picture.height, picture.width, 3).permute(2, 0, 1).float() / 127.5 - 1, row


def dump_to_lmdb(
    encoded: Sequence[bytes], encoder: nn.Module, quantizer: nn.Module, folder: Path, *, workers: int
) -> None:
    """Write the codes of pictures to LMDB as people do: a loader with workers, gradients left on, a row a key.

    The rows are plain bytes where people serialise objects, which only makes this faster.
    """
    import lmdb

    loader, device = DataLoader(Pictures(encoded), batch_size=128, num_workers=workers), quantizer.codebook.device
    with lmdb.open(str(folder), map_size=1 << 30) as environment, environment.begin(write=True) as transaction:
        for images, rows in loader:
            _, _, codes = quantizer(encoder(images.to(device)))
            for row, code in zip(rows.tolist(), codes.detach().cpu().numpy(), strict=True):
                transaction.put(str(row).encode(), code.tobytes())
        transaction.put(b"length", str(len(encoded)).encode())
