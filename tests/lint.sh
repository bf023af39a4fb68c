#!/bin/sh
# Style rules a machine can hold: lengths, which folder may include which, formatting.
# usage: tests/lint.sh            (prints every breach, exits 1 if there is one)
set -u
cd "$(dirname "$0")/.." || exit 1
status=0
complain() { printf '%s\n' "$1" >&2; status=1; }

# may PATTERN FILE...: every project include of these files must match PATTERN.
may() {
    pattern=$1; shift
    for file in "$@"; do
        [ -f "$file" ] || continue
        bad=$(grep -nE '^#include "' "$file" | grep -vE "include \"($pattern)")
        [ -z "$bad" ] || complain "$file may include only $pattern:
$bad"
    done
}

may 'proto/' proto/*.[ch]
may 'proto/|shm/' shm/*.[ch]
may 'proto/|shm/|client/' client/*.[ch]
may 'proto/|client/ds\.h|client/dsctl/' client/dsctl/*.[ch]
may 'proto/|shm/|daemon/' daemon/*.[ch]
may 'proto/|shm/|engine/' engine/link*.[ch] engine/main.c
may 'proto/base\.h|engine/' $(git ls-files 'engine/*.[ch]' | grep -vE '^engine/(link[a-z_]*\.[ch]|main\.c)$')
may 'proto/base\.h|engine/(backend|format/|cpu/)' engine/cpu/*.[ch]
may 'proto/base\.h|engine/format/' engine/format/*.[ch]
may 'proto/base\.h|engine/(format|text)/' engine/text/*.[ch]

# Longest file 800 lines, longest function 70 (forward() of a model family is exempt), 100 columns.
for file in $(git ls-files '*.c' '*.h'); do
    awk -v f="$file" '
        length($0) > 100       { print f ":" FNR ": longer than 100 columns"; bad = 1 }
        /^[a-z].*\(/           { name = $0 }
        /^[{]$/                { start = FNR }
        /^[}]/ && start        { if (FNR - start > 70 && !(f ~ /engine\/model\// && name ~ /forward/)) {
                                     print f ":" start ": function over 70 lines"; bad = 1 } start = 0 }
        END { if (FNR > 800)   { print f ": " FNR " lines, limit 800"; bad = 1 } exit bad }
    ' "$file" >&2 || status=1
done

if command -v clang-format >/dev/null; then
    for file in $(git ls-files '*.c' '*.h'); do
        clang-format --dry-run -Werror "$file" >/dev/null 2>&1 || complain "$file: not clang-formatted (make format)"
    done
else
    echo "lint: clang-format is not installed: formatting not checked"
fi
exit $status
