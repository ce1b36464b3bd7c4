# Runs in the booted Debian, as root. A line for each check: "trial: ok WHAT" or "trial: FAIL WHAT", last "trial: end".
exec 2>&1
check() { # check WHAT COMMAND...: it succeeds
  local what=$1 said
  shift
  if said=$("$@" 2>&1); then echo "trial: ok $what"; else echo "trial: FAIL $what: $said" | tr '\n' ' '; echo; fi
}
says() { # says WHAT PATTERN COMMAND...: its output has it
  local what=$1 pattern=$2 said
  shift 2
  said=$("$@" 2>&1)
  if grep -q -- "$pattern" <<< "$said"; then echo "trial: ok $what"; else echo "trial: FAIL $what: $said" | tr '\n' ' '; echo; fi
}
await() { # await SECONDS COMMAND...: within that time it succeeds
  local left=$1
  shift
  until "$@" > /dev/null 2>&1; do
    left=$((left - 1))
    [ $left -gt 0 ] || return 1
    sleep 1
  done
}
serves() { h2qctl status | grep -q "daemon *serving"; }
value() { systemctl show -p "$1" --value h2qd; }
is() { [ "$(value "$1")" = "$2" ]; }
resident() { h2qctl ps | grep -q "^$1 *ready"; }
event() { journalctl -u h2qd -o cat --no-pager | grep -q "$1"; }

cd /srv/models || exit 1
echo '{"h2qd_fake": 1, "tokens": 10000, "token_ms": 20, "leak_bytes_per_token": 4194304}' > leak.json
echo '{"h2qd_fake": 1, "memory_bytes": 419430400}' > big.json
echo '{"h2qd_fake": 1, "tokens": 400, "token_ms": 50}' > tame.json
mkdir -p /etc/systemd/system/h2qd.service.d
printf '[Service]\nEnvironment=H2Q_TEST=1\n' > /etc/systemd/system/h2qd.service.d/test.conf
cat > /etc/h2qd/h2qd.yaml << 'Y'
models:
  gemma: {path: /srv/models/gemma.gguf, ctx: 1024}
  leak: {path: /srv/models/leak.json, backend: fake}
  big: {path: /srv/models/big.json, backend: fake}
  tame: {path: /srv/models/tame.json, backend: fake}
remotes:
  lab: {type: openai, url: "http://127.0.0.1:9/v1"}
Y
systemctl daemon-reload

check "it is enabled and has started" systemctl is-active h2qd
systemctl restart h2qd
check "it serves" await 120 serves
says "it runs as its own user" "^h2qd" ps -o user= -p "$(value MainPID)"
says "workers are kept to their plans by cgroup v2" "^ok *cgroup.*(cgroup v2)" h2qctl doctor
says "stalls are told" "^ok *pressure" h2qctl doctor
says "servers can be spoken to" "Connection refused" h2qctl doctor
check "a real model loads" h2qctl load gemma --timeout 3m
check "and answers" h2qctl infer "Once upon a time" --max-tokens 3
check "its worker has a group with a limit" grep -q "^[0-9]" /sys/fs/cgroup/system.slice/h2qd.service/h2qd-*/worker-*/memory.max
says "all of its memory comes back" "came back" h2qctl unload gemma
says "a worker that leaks dies alone" worker_oom h2qctl infer leak hello
h2qctl load tame
says "a load that outgrows its plan is rolled back" "tame is resident again" h2qctl switch big
check "who was resident is" resident tame
says "neither cost the daemon" "^0" value NRestarts

kill -9 "$(value MainPID)"
check "killed, it is started anew" await 60 is NRestarts 1
check "and serves" await 120 serves
check "with the model that was resident" await 30 resident tame

h2qctl infer tame hello --max-tokens 100 > /tmp/answer &
await 20 sh -c 'h2qctl status | grep -q "requests *1 running"'
check "a stop waits for the answer under way" systemctl stop h2qd
check "whose client has all of it" wait $!
says "to the last word" tok99 cat /tmp/answer

systemctl start h2qd
await 120 serves
kill -STOP "$(value MainPID)"
check "a loop that hangs is ended by the watchdog" await 90 event "Watchdog timeout"
check "and started anew" await 120 serves

h2qctl load tame
python3 -c "
import time
taken = []
while True:
    free = next(int(line.split()[1]) for line in open('/proc/meminfo') if line.startswith('MemAvailable')) // 1024
    if free < 330:
        break
    taken.append(bytearray(50 * 2**20))
    time.sleep(0.1)
time.sleep(60)" &
eater=$!
check "who takes the device's memory is noticed" await 50 event '"now": "critical"'
check "and an idle model goes" await 20 sh -c '! h2qctl ps | grep -q "^tame *ready"'
kill $eater

useradd -m ann
says "a stranger is told which group to join" "usermod -aG h2qd" su ann -c "h2qctl status"
usermod -aG h2qd ann
says "and then who admits users" "access:" su ann -c "h2qctl status"
echo "nonsense: 1" >> /etc/h2qd/h2qd.yaml
systemctl restart h2qd
says "a mistake in the configuration is told with its line" "h2qd.yaml:8: .*nonsense" journalctl -u h2qd -o cat --no-pager -n 20
sleep 5
check "and not tried again" is ActiveState failed
echo "trial: end"
