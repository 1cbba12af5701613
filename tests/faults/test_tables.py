import pytest

from tests.faults import annotation_files, command_rows, image_files, voc_files, yolo_files
from tests.faults.row import check


@pytest.mark.parametrize("row", annotation_files.ROWS, ids=lambda row: row.tried[:60])
def test_annotation_file(row, tmp_path, caplog):
    check(row, tmp_path, lambda: caplog.messages)


@pytest.mark.parametrize("row", image_files.ROWS, ids=lambda row: row.tried[:60])
def test_image_file(row, tmp_path, caplog):
    check(row, tmp_path, lambda: caplog.messages)


@pytest.mark.parametrize("row", yolo_files.ROWS, ids=lambda row: row.tried[:60])
def test_yolo_files(row, tmp_path, caplog):
    check(row, tmp_path, lambda: caplog.messages)


@pytest.mark.parametrize("row", voc_files.ROWS, ids=lambda row: row.tried[:60])
def test_voc_files(row, tmp_path, caplog):
    check(row, tmp_path, lambda: caplog.messages)


@pytest.mark.filterwarnings("ignore")  # Lightning's, of a run of one step
@pytest.mark.parametrize(
    "row", [*command_rows.SETTINGS, *command_rows.CHECKPOINTS, *command_rows.RUNS], ids=lambda row: row.tried[:60]
)
def test_command(row, tmp_path):
    command_rows.check(row, tmp_path)
