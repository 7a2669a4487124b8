"""Prepared data sets."""

from tests.support.prepared_sets import painted as painted
from tests.support.prepared_sets import prepared as prepared
