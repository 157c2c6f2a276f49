"""Regions that another program computed: each kind of file read back, and what is wrong with one said in a sentence."""

import json
import multiprocessing
import os
import pickle
import re
import sys

import numpy as np
import pytest
import torch

from src.data.module import CaptionData
from src.data.regions import RegionFiles, RegionsError, padded, region_files
from src.data.tokenizer import EnglishTokenizer
from src.data.transforms import Preprocess
from src.data.tsv import TsvError
from src.encoders.base import grid_boxes
from tests.conftest import write_regions

WHOLE = np.tile(np.float32([0, 0, 1, 1]), (3, 1))
FEATURES = np.random.default_rng(0).standard_normal((3, 6)).astype(np.float32)
BOXES = np.float32([[0, 0, 20, 24], [10, 12, 40, 48], [0, 0, 40, 48]])
"""Of a picture of 40 × 48 pixels."""
FRACTIONS = BOXES / np.float32([40, 48, 40, 48])
SIZE = {"image_w": 40, "image_h": 48}


def read(folder, image="a/b.jpg", maximum=100, dimension=6):
    found = RegionFiles(folder, dimension, maximum).read(image)
    assert found.features.dtype == found.boxes.dtype == np.float32
    return found


@pytest.mark.parametrize(
    ("arrays", "boxes"),
    [
        ({"features": FEATURES, "boxes": FRACTIONS}, FRACTIONS),
        ({"feat": FEATURES, "bbox": BOXES, **SIZE}, FRACTIONS),
        ({"x": FEATURES.astype(np.float64), "boxes": BOXES, "image_width": 40, "image_height": 48}, FRACTIONS),
        ({"features": FEATURES, "boxes": FRACTIONS, **SIZE}, FRACTIONS),
        ({"features": FEATURES}, WHOLE),
        ({"features": FEATURES, "boxes": BOXES * 1.1, **SIZE}, (FRACTIONS * 1.1).clip(0, 1)),
        ({"features": FEATURES, "objects_id": np.array(["dog", "cat", "sky"])}, WHOLE),
    ],
)
def test_npz(arrays, boxes, tmp_path):
    (tmp_path / "a").mkdir()
    np.savez(tmp_path / "a" / "b.npz", **arrays)
    found = read(tmp_path)
    np.testing.assert_allclose(found.features, FEATURES)
    np.testing.assert_allclose(found.boxes, boxes, atol=1e-6)


def test_npy_of_regions_and_of_a_grid(tmp_path):
    np.save(tmp_path / "b.npy", FEATURES)
    np.testing.assert_allclose(read(tmp_path).boxes, WHOLE)
    grid = np.random.default_rng(0).standard_normal((2, 3, 6)).astype(np.float16)
    np.save(tmp_path / "b.npy", grid)
    found = read(tmp_path)
    np.testing.assert_allclose(found.features, grid.reshape(6, 6))
    np.testing.assert_allclose(found.boxes, grid_boxes(2, 3).numpy())
    with pytest.raises(RegionsError, match="a grid of 2 × 3, more than encoder.max_regions=5: raise it to 6"):
        read(tmp_path, maximum=5)


def test_hdf5_groups_and_datasets(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "all.h5", "w") as file:
        group = file.create_group("a/b.jpg")
        group["features"], group["boxes"] = FEATURES, BOXES
        group.attrs.update(SIZE)
        file["c"] = FEATURES
        file["d/features"], file["d/bbox"] = FEATURES, BOXES
        file["d/image_w"], file["d/image_h"] = 40, 48
    for image, boxes in (("a/b.jpg", FRACTIONS), ("x/c.png", WHOLE), ("d.jpg", FRACTIONS)):
        found = read(tmp_path / "all.h5", image)
        np.testing.assert_allclose(found.features, FEATURES)
        np.testing.assert_allclose(found.boxes, boxes, atol=1e-6)
    with pytest.raises(RegionsError, match="all.h5: no regions of a/e.jpg; looked for are a/e, a/e.jpg, e, e.jpg"):
        read(tmp_path / "all.h5", "a/e.jpg")
    with pytest.raises(RegionsError, match=r"all.h5:c: features are \(3, 6\), and \(R, 5\) or \(h, w, 5\) is wanted"):
        read(tmp_path / "all.h5", "c.jpg", dimension=5)
    (tmp_path / "bad.h5").write_bytes(b"no such thing")
    with pytest.raises(RegionsError, match="bad.h5: not an HDF5 file, or a damaged one"):
        read(tmp_path / "bad.h5")


def test_each_process_opens_an_hdf5_file_itself(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "all.hdf5", "w") as file:
        file["a"] = FEATURES
    files = RegionFiles(tmp_path / "all.hdf5", 6, 100)
    assert files._opened is None, "not before it is needed"
    files.read("a.jpg")
    context = multiprocessing.get_context("fork")
    told = context.Queue()

    def job():
        told.put((files.read("a.jpg").features.tolist(), files._opened[0]))

    process = context.Process(target=job)
    process.start()
    features, opener = told.get(timeout=30)
    process.join()
    assert features == FEATURES.tolist() and opener == process.pid != files._opened[0]
    assert pickle.loads(pickle.dumps(files)).read("a.jpg").features.tolist() == FEATURES.tolist()


def test_hdf5_without_its_package(tmp_path, monkeypatch):
    (tmp_path / "all.h5").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(RegionsError, match="all.h5: HDF5 needs h5py: `pip install h5py` first"):
        RegionFiles(tmp_path / "all.h5", 6, 100)


def test_the_longest_part_of_a_pictures_path_is_taken(tmp_path):
    (tmp_path / "b").mkdir()
    for place, value in ((tmp_path / "c.npy", 1), (tmp_path / "b" / "c.npy", 2)):
        np.save(place, np.full((1, 6), value))
    for image, value in (("a/b/c.jpg", 2), ("../b/c.jpg", 2), ("/b/c.jpg", 2), ("x/c.png", 1), ("c", 1)):
        assert read(tmp_path, image).features[0, 0] == value
    (tmp_path / "in").mkdir()
    with pytest.raises(RegionsError, match="no regions of ../d.jpg"):
        np.save(tmp_path / "d.npy", FEATURES)
        read(tmp_path / "in", "../d.jpg")


def test_those_listed_first_are_taken(tmp_path):
    np.savez(tmp_path / "b.npz", features=FEATURES, boxes=FRACTIONS)
    found = read(tmp_path, maximum=2)
    np.testing.assert_allclose(found.features, FEATURES[:2])
    np.testing.assert_allclose(found.boxes, FRACTIONS[:2])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"features": FEATURES[:, :4]}, "b.npz: features are (3, 4), and (R, 6) or (h, w, 6) is wanted: set"),
        ({"features": FEATURES[0]}, "features are (6)"),
        ({"feature": FEATURES}, "no features; looked for are features, feat, feats, x, and there is feature"),
        ({"features": FEATURES[:0]}, "b.npz: no regions: compute it again, or leave the picture out"),
        ({"features": FEATURES, "boxes": FRACTIONS[:2]}, "boxes are (2, 4), and (3, 4) is wanted"),
        ({"features": FEATURES, "boxes": BOXES}, "boxes in pixels need image_w and image_h beside them"),
        ({"features": FEATURES, "boxes": BOXES, "image_w": 40}, "boxes in pixels need image_w and image_h"),
        ({"features": FEATURES, "boxes": FRACTIONS[:, ::-1]}, "boxes that are not x1, y1, x2, y2 with x1 ≤ x2"),
        ({"features": FEATURES, "boxes": FRACTIONS * np.nan}, "boxes that are not x1, y1, x2, y2"),
        ({"features": FEATURES * np.inf}, "features that are no finite numbers"),
        ({"features": np.array([{"a": 1}])}, "damaged, or no arrays of numbers"),
    ],
)
def test_files_that_do_not_fit(arrays, message, tmp_path):
    np.savez(tmp_path / "b.npz", **arrays)
    with pytest.raises(RegionsError, match=re.escape(message)):
        read(tmp_path)


def test_pickled_code_in_a_file_does_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    np.save(tmp_path / "b.npy", np.array([Evil()]), allow_pickle=True)
    with pytest.raises(RegionsError, match="b.npy: damaged, or no arrays of numbers"):
        read(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_damaged_files_and_missing_folders(tmp_path):
    np.savez(tmp_path / "b.npz", features=FEATURES)
    (tmp_path / "b.npz").write_bytes((tmp_path / "b.npz").read_bytes()[:60])
    with pytest.raises(RegionsError, match="b.npz: damaged"):
        read(tmp_path)
    with pytest.raises(RegionsError, match="none: no such folder; regions computed beforehand are looked for there"):
        read(tmp_path / "none")
    with pytest.raises(RegionsError, match="none.h5: no such file"):
        read(tmp_path / "none.h5")
    with pytest.raises(RegionsError, match="b.npz: no such folder; .* an HDF5 file"):
        read(tmp_path / "b.npz")


def test_which_encoders_read_regions(tmp_path):
    encoder = {"path": "here", "dimension": 6, "max_regions": 3}
    (tmp_path / "here").mkdir()
    assert region_files(encoder, tmp_path).path == tmp_path / "here"
    assert region_files(encoder, tmp_path / "elsewhere", tmp_path / "here").path == tmp_path / "here"
    assert region_files({"backbone": {}}, tmp_path) is None
    with pytest.raises(RegionsError, match="looks at the pictures themselves: give it no regions"):
        region_files({"backbone": {}}, tmp_path, "here")


def test_a_batch_is_padded_and_masked():
    from src.data.regions import ReadRegions

    batch = padded([ReadRegions(FEATURES[:1], FRACTIONS[:1]), ReadRegions(FEATURES, FRACTIONS)])
    assert batch.mask.tolist() == [[True, False, False], [True] * 3]
    assert batch.regions.shape == (2, 3, 6) and batch.boxes.shape == (2, 3, 4)
    assert not batch.regions[0, 1:].any() and torch.equal(batch.regions[1], torch.from_numpy(FEATURES))


# as a data set


def data(root, table="t.tsv", dimension=6, **options):
    regions = RegionFiles(root / "regions", dimension, 100)
    return CaptionData(
        root, Preprocess(8), EnglishTokenizer(), train=table, min_count=1, batch_size=2, regions=regions, **options
    )


@pytest.fixture
def pictureless(tmp_path):
    """Four captioned pictures of which there are only regions: 2, 3, 4 and 1."""
    (tmp_path / "regions").mkdir()
    for number, count in enumerate((2, 3, 4, 1)):
        write_regions(tmp_path / "regions" / f"{number}.npz", count, 6, seed=number)
    (tmp_path / "t.tsv").write_text("".join(f"photos/{i}.jpg\ta picture number {i}\n" for i in range(4)))
    return tmp_path


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("verify", ["none", "exists", "decode"])
def test_no_picture_needs_to_be_there(verify, workers, pictureless):
    found = {}
    for batch in data(pictureless, verify=verify, workers=workers).evaluation_dataloader("train"):
        for row, index in enumerate(batch.index.tolist()):
            found[index] = batch.images.regions[row][batch.images.mask[row]]
    expected = [np.load(pictureless / "regions" / f"{i}.npz")["features"] for i in range(4)]
    assert [len(found[i]) for i in range(4)] == [2, 3, 4, 1]
    assert all(np.array_equal(found[i].numpy(), expected[i].astype(np.float32)) for i in range(4))


def test_missing_and_unusable_regions_are_bad_rows(pictureless, tmp_path):
    os.remove(pictureless / "regions" / "1.npz")
    with pytest.raises(TsvError, match=r"t.tsv:2: .*no regions of photos/1.jpg; looked for are photos/1.npz"):
        data(pictureless)
    np.savez(pictureless / "regions" / "2.npz", features=FEATURES[:0])
    options = {"on_bad_row": "skip", "cache_dir": tmp_path / "cache"}
    assert data(pictureless, **options).images("train").images == [f"photos/{i}.jpg" for i in (0, 2, 3)]
    assert data(pictureless, verify="decode", **options).images("train").images == ["photos/0.jpg", "photos/3.jpg"]
    listed = next((tmp_path / "cache").glob("*.skipped.tsv")).read_text()
    assert "\tmissing regions\t" in listed and "\tunreadable regions\t" in listed


def test_files_of_another_width_are_refused_before_any_work(pictureless):
    with pytest.raises(RegionsError, match=r"0.npz: features are \(2, 6\), and \(R, 2048\)"):
        data(pictureless, dimension=2048)


def test_the_fixtures_own_regions(shapes):
    """What conftest writes is what is read: so the tests of whole trainings have real files."""
    found = RegionFiles(shapes / "regions", 2048, 100).read("images/07.png")
    assert found.features.shape == (5, 2048) and found.boxes.min() >= 0 and found.boxes.max() <= 1
    assert json.loads((shapes / "nouns.json").read_text())["images/07.png"]
