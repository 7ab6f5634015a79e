"""The k-core of interactions: what is left when users and items with too few are taken away."""

import numpy as np

from training.sources import Events, codes_of


def k_core(events: Events, users: int, items: int) -> Events:
    """The largest part of the interactions in which nobody and nothing has too few.

    Taking away an item can leave a user with too few, and the other way round, so it goes on
    until nothing changes. The order is kept. Several interactions of one user with one item count
    as several.

    Args:
        users: least interactions of every user that is left.
        items: least interactions of every item that is left.
    """
    user, item = codes_of(events.users), codes_of(events.items)
    places = np.arange(len(user))
    while True:
        enough = (np.bincount(user)[user] >= users) & (np.bincount(item)[item] >= items)
        if enough.all():
            return events.at(places)
        user, item, places = user[enough], item[enough], places[enough]
