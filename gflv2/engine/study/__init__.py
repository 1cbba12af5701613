"""Configurations × seeds × data, trained, evaluated and compared: ``study``, which `gflv2 study` calls."""

from gflv2.engine.study.plan import Study, list_studies, read_study
from gflv2.engine.study.study import StudyResult, study

__all__ = ["Study", "StudyResult", "list_studies", "read_study", "study"]
