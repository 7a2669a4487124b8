"""Prepared data sets, and real ranks."""

from tests.support.prepared_sets import painted as painted
from tests.support.prepared_sets import prepared as prepared
from tests.training.conftest import on_ranks as on_ranks
