# Runs the shell blocks of bench/OPERATORS.md (file $1) with the program in folder $2, from an empty
# folder: the same commands, on few windows and tokens.
set -eu
lines="$1"
[ -s "$lines" ]
PATH="$2:$PATH"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
cd "$work"
cat > shortened <<'SHELL'
adaptive_k() {
  case "$1" in
    benchmark) case "$*" in *--trace*) adaptive-k "$@" ;; *) adaptive-k "$@" --windows 16 ;; esac ;;
    record) adaptive-k "$@" --windows 16 ;;
    calibrate) case "$*" in *--trace*) adaptive-k "$@" ;; *) adaptive-k "$@" --tokens 2048 --test-windows 16 ;; esac ;;
    *) adaptive-k "$@" ;;
  esac
}
SHELL
sed 's/adaptive-k \(benchmark\|record\|calibrate\)/adaptive_k \1/' "$lines" | cat shortened - > commands
sh -eux commands
for made in trace.safetensors policy.json report.json preset.json preset40.json log.json; do
  [ -s "$made" ] || { echo "$made was not written"; exit 1; }
done
