"""What a server stands on: the lock on its home, its ports, and what it finds of one that was killed."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lifelist.deploy import ground
from lifelist.exporter.errors import BadSetting, Conflict


def listening() -> socket.socket:
    return listening_at(0)


def test_a_port_in_use_is_named_with_a_way_out() -> None:
    with listening() as other:
        port = other.getsockname()[1]
        with pytest.raises(Conflict, match=rf"port {port} on 127.0.0.1 is in use .* lifelist serve --port \d+"):
            ground.check_port("127.0.0.1", port)
    ground.check_port("127.0.0.1", port)  # and free again once the other has ended


def test_a_port_that_another_shares_on_all_addresses_is_in_use() -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("0.0.0.0", 0))
        other.listen()
        with pytest.raises(Conflict):
            ground.check_port("127.0.0.1", other.getsockname()[1])


@pytest.mark.parametrize("host", ["192.0.2.77", "no-such-host.invalid"])
def test_an_address_of_another_machine_is_a_bad_setting(host: str) -> None:
    with pytest.raises(BadSetting, match=host):
        ground.check_port(host, 18000)


def test_two_servers_never_get_the_same_ports() -> None:
    first, second = ground.take_block(), ground.take_block()
    assert not set(first.variables().values()) & set(second.variables().values())
    with listening_at(second.first + ground.BLOCK + 50):
        third = ground.take_block()
        assert third.first != second.first + ground.BLOCK  # one port of that block is taken
    for block in (first, second, third):
        block.guard.close()


def listening_at(port: int) -> socket.socket:
    return socket.create_server(("127.0.0.1", port))


def test_a_home_has_one_server_and_the_second_is_told_which(tmp_path: Path) -> None:
    with ground.lock(tmp_path):
        ground.write(tmp_path, ground.Record(1234, "n", "127.0.0.1", 8123, "/tmp/none"))
        with pytest.raises(Conflict, match=r"served already, by process 1234, at port 8123"), ground.lock(tmp_path):
            pass
    with ground.lock(tmp_path):
        pass


def test_what_a_killed_server_left_is_cleared(tmp_path: Path) -> None:
    folder = ground.private_folder("/bin/true")
    left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], env={ground.MARK: "abc"})
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], env={ground.MARK: "abcd"})
    try:
        deadline = time.monotonic() + 10
        while ground.processes("abc") != [left.pid]:
            assert time.monotonic() < deadline
        ground.write(tmp_path, ground.Record(left.pid, "abc", "127.0.0.1", 8123, str(folder)))
        ground.clear(tmp_path)
        assert left.wait(10) == -9
        assert other.poll() is None  # another server's
        assert not folder.exists()
        assert ground.read(tmp_path) is None
    finally:
        left.kill()
        other.kill()
        other.wait()


def test_a_half_written_record_is_no_record(tmp_path: Path) -> None:
    (tmp_path / "server.json").write_text('{"process_id": 12')
    assert ground.read(tmp_path) is None
    ground.clear(tmp_path)


def test_the_private_folder_is_private_and_short() -> None:
    folder = ground.private_folder("/opt/ha proxy")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert os.access(folder / "haproxy", os.X_OK)
    # Ray adds a folder of 56 characters and a name, HAProxy a suffix while it starts; a socket's path ends at 107
    assert len(str(folder / ("x" * 56) / "admin.sock.1234567.tmp")) <= 107
    (folder / "haproxy").unlink()
    folder.rmdir()
