"""The asset table is sound; what it fetches is exercised by the tests that use the clips."""

import pytest

from tests import assets


def test_every_asset_name_belongs_to_one_package():
    names = [name for package in assets.PACKAGES for name in package.assets]
    assert sorted(names) == list(assets.ASSETS)
    assert len(set(names)) == len(names) == 16


def test_hashes_are_sha256_and_unique():
    hashes = [package.sha256 for package in assets.PACKAGES]
    assert all(len(digest) == 64 and int(digest, 16) >= 0 for digest in hashes)
    assert len(set(hashes)) == len(hashes)


def test_a_fetch_that_fails_skips_with_its_reason(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(assets, "_download", _refuse)
    with pytest.raises(pytest.skip.Exception, match=r"vtest\.avi.*registry is down"):
        assets.require_asset("vtest.avi")
    monkeypatch.setattr(assets, "_download", _must_not_be_called)
    with pytest.raises(pytest.skip.Exception, match="registry is down"):
        assets.require_asset("tree.avi")


def test_a_wrong_hash_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(assets, "_run", lambda command, folder: (folder / "x.tgz").write_bytes(b"other"))
    package = next(package for package in assets.PACKAGES if package.kind == "npm")
    with pytest.raises(assets.AssetError, match="sha256"):
        assets._download(package, tmp_path)


def test_assets_off_fetches_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("FFR_TEST_ASSETS", "off")
    with pytest.raises(assets.AssetError, match="FFR_TEST_ASSETS"):
        assets.fetch_asset("vtest.avi")


def test_an_unknown_name_is_an_error_not_a_skip():
    with pytest.raises(KeyError, match="no asset"):
        assets.require_asset("nothing.mp4")


def _refuse(package, folder):
    raise assets.AssetError("registry is down")


def _must_not_be_called(package, folder):
    raise AssertionError("a remembered failure was fetched again")
