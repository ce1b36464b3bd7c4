# Make a disk with Debian and h2qd: image.sh FOLDER CHECKOUT MODEL INSTALL, where INSTALL holds the commands to install it.
set -eu
folder=$1 checkout=$2 model=$3 install=$4
root=$folder/root
inside() { chroot "$root" env -u PIP_FIND_LINKS PIP_DISABLE_PIP_VERSION_CHECK=1 \
  CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON" "$@"; }

mkdir -p "$folder"
if [ ! -e "$root/.complete" ]; then
  rm -rf "$root"
  debootstrap --variant=minbase \
    --include=systemd,systemd-sysv,dbus,udev,linux-image-cloud-amd64,procps,git,make,gcc,g++,python3,python3-venv,python3-dev,ca-certificates \
    bookworm "$root" > "$folder/debootstrap.log"
  echo h2vm > "$root/etc/hostname"
  touch "$root/.complete"
fi
cp /etc/resolv.conf "$root/etc/resolv.conf"
cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
rm -rf "$root/root/h2qd" && git clone -q "$checkout" "$root/root/h2qd"
install -D -m 644 "$model" "$root/srv/models/gemma.gguf"
cp "$install" "$root/root/install.sh"
inside sh -euxc 'cd /root/h2qd && . /root/install.sh' > "$folder/install.log" 2>&1
install -D -m 644 "$checkout/tests/boot/trial.service" "$root/etc/systemd/system/trial.service"
install -m 644 "$checkout/tests/boot/trial.sh" "$root/root/trial.sh"
inside systemctl enable -q trial
rm -f "$folder/disk.img"
mke2fs -q -t ext4 -d "$root" -L root "$folder/disk.img" 5G
