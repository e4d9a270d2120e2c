# Shared by bench/run, tests/run and .ci/run (which source it): packages, configure, build.
# Everything said here goes to stderr, so that a program's own output stays clean.

repository_root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

# Threads that wait must not burn the cores of a machine that others use too.
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-passive}"

say() { printf '%s\n' "$*" >&2; }

# Debian packages that the build uses; what is missing among them and cannot be installed,
# CMake fetches as source, except the first line.
tool_packages=(cmake g++ make)
library_packages=(libgtest-dev libbenchmark-dev nlohmann-json3-dev libcli11-dev libfmt-dev
                  libeigen3-dev libdnnl-dev libssl-dev)
# Without these parts are left out: the endpoint for Prometheus and A/B tests; the endpoint's test
# by Prometheus itself; the test of what pkg-config says; the single header; the Python package; experts over ranks by MPI.
endpoint_packages=(libboost-dev)
optional_packages=("${endpoint_packages[@]}" prometheus pkg-config python3 python3-dev python3-venv
                   libopenmpi-dev openmpi-bin)
# The last three build for ARM, run what they built, and build for Windows.
check_packages=(clang clang-format clang-tidy doxygen git ninja-build locales
                g++-aarch64-linux-gnu qemu-user g++-mingw-w64-x86-64-posix)

# need_packages name...: installs those that are missing, where that is allowed.
need_packages() {
  command -v dpkg-query > /dev/null || return 0
  local missing=() package as_root=()
  for package in "$@"; do
    [ "$(dpkg-query -W -f='${db:Status-Abbrev}' "$package" 2> /dev/null)" = "ii " ] ||
      missing+=("$package")
  done
  [ ${#missing[@]} -eq 0 ] && return 0
  if [ "$(id -u)" -ne 0 ]; then
    if ! sudo -n true 2> /dev/null; then
      say "Not installed: ${missing[*]}"
      say "No right to install them; CMake downloads the sources of the libraries it cannot do" \
          "without (about 15 MB)."
      return 0
    fi
    as_root=(sudo -n)
  fi
  say "Installing: ${missing[*]}"
  local install=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive
                 apt-get install -y -qq --no-install-recommends "${missing[@]}")
  # The package index may be missing or old: fetch it, and try again, only then.
  if ! "${install[@]}" > /dev/null 2>&1 < /dev/null; then
    "${as_root[@]}" apt-get update -qq >&2 < /dev/null || true
    "${install[@]}" > /dev/null < /dev/null ||
      say "apt-get could not install them all; going on with what is there."
  fi
}

# The CUDA compiler as PyPI packages it, about 130 MB.
cuda_wheels=(nvidia-cuda-nvcc nvidia-nvvm nvidia-cuda-crt nvidia-cuda-runtime nvidia-cuda-cccl)

# need_nvcc: with ADAPTIVE_K_FETCH_NVCC=1 and no CUDA compiler, fetches one into build/cuda-compiler.
need_nvcc() {
  local home="$repository_root/build/cuda-compiler" toolkit
  toolkit="$home/nvidia/cu13"
  [ -n "${CUDACXX:-}" ] || command -v nvcc > /dev/null || [ -x /usr/local/cuda/bin/nvcc ] && return 0
  if [ ! -x "$toolkit/bin/nvcc" ]; then
    if [ "${ADAPTIVE_K_FETCH_NVCC:-}" != 1 ]; then
      say "No CUDA compiler (nvcc): the kernels are left out. ADAPTIVE_K_FETCH_NVCC=1 fetches one by pip (130 MB)."
      return 0
    fi
    say "Fetching nvcc 13.0 into build/cuda-compiler"
    if ! python3 -m pip install --quiet --no-deps --upgrade --target "$home" \
           "${cuda_wheels[@]/%/==13.0.*}" >&2 < /dev/null; then
      say "pip could not fetch it; going on without the kernels."
      return 0
    fi
    ln -sfn lib "$toolkit/lib64"  # where nvcc looks
  fi
  export CUDACXX="$toolkit/bin/nvcc"
}

# What the Python package is built and tested with, about 30 MB to fetch.
python_packages=(nanobind numpy pytest)

# need_python_packages: puts them into build/python-packages, where CMake then finds them; or says in
# one line why the Python package is left out.
need_python_packages() {
  local home="$repository_root/build/python-packages"
  if ! [ -x "$home/bin/python" ] || ! "$home/bin/python" -c 'import nanobind, numpy, pytest' 2> /dev/null; then
    if ! { python3 -m venv --clear "$home" &&
           "$home/bin/python" -m pip install --quiet --disable-pip-version-check "${python_packages[@]}"; } \
           > /dev/null 2>&1 < /dev/null; then
      say "No ${python_packages[*]} for Python, and pip could not fetch them: the Python package is left out."
      rm -rf "$home"
      return 0
    fi
  fi
  export VIRTUAL_ENV="$home"
}

# One job a core, but no more than memory allows: a test file can take 1.5 GB to compile.
build_jobs() {
  local cores memory
  cores="$(nproc 2> /dev/null || echo 2)"
  memory="$(awk '/^MemAvailable/ { print int($2 / 1500000) }' /proc/meminfo 2> /dev/null)"
  memory="${memory:-$cores}"
  [ "$memory" -lt 1 ] && memory=1
  [ "$memory" -lt "$cores" ] && cores="$memory"
  echo "$cores"
}

# configure_and_build preset [target...]: leaves the result in build/<preset>.
configure_and_build() {
  local preset="$1" log
  shift
  for tool in cmake c++; do
    command -v "$tool" > /dev/null || { say "error: $tool is not installed"; return 2; }
  done
  command -v ninja > /dev/null && export CMAKE_GENERATOR="${CMAKE_GENERATOR:-Ninja}"
  say "Configuring build/$preset"
  if ! log="$(cd "$repository_root" && cmake --preset "$preset" 2>&1 < /dev/null)"; then
    say "$log"
    return 1
  fi
  grep -E '^-- adaptive_k: ' <<< "$log" | sed 's/^-- //' >&2 || true
  say "Building build/$preset"
  cmake --build "$repository_root/build/$preset" --parallel "$(build_jobs)" \
    ${1:+--target "$@"} >&2 < /dev/null
}
