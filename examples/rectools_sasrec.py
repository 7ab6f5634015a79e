"""Item vectors of a run as the item table of RecTools' SASRec.

    python -m training export --config shop.toml --format npy        # writes runs/shop/npy
    python examples/rectools_sasrec.py --vectors runs/shop/npy --interactions interactions.csv

RecTools 0.19 wants numpy 1, this project numpy 2: give it an environment of its own, in which only
`pip install "rectools[torch]==0.19.*"` is needed. The table is frozen; a linear layer on top of it
and the transformer are trained. So that the effect can be seen, `--table ids` trains RecTools' own
table of ids in its place. What is printed is the share of users whose latest item is among the
first ten, over few epochs: it shows that the plug fits, and is no measurement.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from rectools import Columns
from rectools.dataset import Dataset
from rectools.dataset.dataset import DatasetSchema
from rectools.models import SASRecModel
from rectools.models.nn.item_net import IdEmbeddingsItemNet, ItemNetBase
from torch import nn

K = 10


class FrozenTable(ItemNetBase):  # type: ignore[misc]
    """A linear layer over item vectors that are given and stay as they are.

    Args:
        table: (n, W) float32 by RecTools' internal ids; padding has zeros.
        n_factors: the width that the transformer reads.
    """

    def __init__(self, table: torch.Tensor, n_factors: int) -> None:
        super().__init__()
        self.register_buffer("table", table)
        self.projection = nn.Linear(table.shape[1], n_factors, bias=False)

    def forward(self, items: torch.Tensor) -> torch.Tensor:
        """Of internal ids, of any shape, what the transformer reads."""
        projected: torch.Tensor = self.projection(self.get_buffer("table")[items.to(self.device)])
        return projected

    @classmethod
    def from_dataset(cls, dataset: Dataset, n_factors: int, *args: object, **more: object) -> Self:
        """Over the dense features of the items, which RecTools has in the order of its ids."""
        features = dataset.item_features
        assert features is not None  # noqa: S101 - main gives them
        return cls(torch.from_numpy(np.asarray(features.values, np.float32)), n_factors)

    @classmethod
    def from_dataset_schema(
        cls, dataset_schema: DatasetSchema, n_factors: int, *args: object, **more: object
    ) -> Self:
        """As large as a saved one, which is then read into it."""
        features = dataset_schema.items.features
        assert features is not None  # noqa: S101
        return cls(torch.zeros(dataset_schema.items.n_hot, len(features.names)), n_factors)

    @property
    def out_dim(self) -> int:
        """The width that the transformer reads."""
        return self.projection.out_features


def read(vectors: Path, view: str, interactions: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Interactions, and vectors by item, in RecTools' columns; of items that are in both.

    Vectors are brought to a common length of 1 on average, which a linear layer likes.
    """
    ids = json.loads((vectors / "item_ids.json").read_text())
    table = np.load(vectors / f"{view}.npy")
    table = table / np.sqrt((table**2).sum(axis=1).mean())
    events = pd.read_csv(interactions, dtype={"user_id": str, "item_id": str})
    events = events[events["item_id"].isin(set(ids))]
    frame = pd.DataFrame(
        {
            Columns.User: events["user_id"],
            Columns.Item: events["item_id"],
            Columns.Datetime: pd.to_datetime(events["timestamp"], unit="s"),
            Columns.Weight: 1,
        }
    )
    features = pd.DataFrame(table, columns=[f"v{n}" for n in range(table.shape[1])])
    features.insert(0, "id", ids)
    return frame, features[features["id"].isin(set(frame[Columns.Item]))]


def split(events: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """All but the latest of each user, and the latest."""
    ordered = events.sort_values(Columns.Datetime, kind="stable")
    latest = ordered.groupby(Columns.User).tail(1)
    return ordered.drop(latest.index), latest


def main() -> None:
    """Train, and say how often the latest item of a user is among the first ten."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--vectors", type=Path, required=True, help="what export --format npy wrote"
    )
    parser.add_argument(
        "--interactions", type=Path, required=True, help="user_id,item_id,timestamp"
    )
    parser.add_argument("--view", default="text")
    parser.add_argument("--table", choices=["frozen", "ids"], default="frozen")
    parser.add_argument("--epochs", type=int, default=5)
    arguments = parser.parse_args()
    try:
        events, features = read(arguments.vectors, arguments.view, arguments.interactions)
    except OSError as error:
        sys.exit(str(error))
    earlier, latest = split(events)
    dataset = Dataset.construct(
        earlier,
        item_features_df=features[features["id"].isin(set(earlier[Columns.Item]))],
        make_dense_item_features=True,
    )
    tables: dict[str, Any] = {"frozen": FrozenTable, "ids": IdEmbeddingsItemNet}
    torch.manual_seed(0)
    model = SASRecModel(
        n_factors=64,
        n_blocks=1,
        n_heads=2,
        session_max_len=50,
        epochs=arguments.epochs,
        item_net_block_types=(tables[arguments.table],),
    )
    model.fit(dataset)
    users = dataset.user_id_map.external_ids
    answered = model.recommend(users=users, dataset=dataset, k=K, filter_viewed=True)
    joined = answered.merge(latest, on=[Columns.User, Columns.Item])
    print(f"{dataset.item_id_map.size} items, {len(users)} users, {arguments.epochs} epochs")
    print(f"latest item among the first {K}: {len(joined) / len(users):.3f} ({arguments.table})")


if __name__ == "__main__":
    main()
