import pytest

from tests.faults import image_files
from tests.faults.row import check


@pytest.mark.parametrize("row", image_files.ROWS, ids=lambda row: row.tried[:60])
def test_image_file(row, tmp_path, caplog):
    check(row, tmp_path, lambda: caplog.messages)
