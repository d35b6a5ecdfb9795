# Shared by build.sh and test.sh: where things are, and what to install when they are missing.
set -eu
offline=$(cd "$(dirname "$0")" && pwd)
app=$(cd "$offline/../app" && pwd)
out=${QWTV2_ANDROID_OUT:-$offline/build}
json=/usr/share/java/com.android.json.jar # Android's own org.json
java_flags="--release 7 -encoding UTF-8 -Xlint:all,-options,-serial -Werror"

# need FILE_OR_COMMAND DEBIAN_PACKAGE
need() {
    if ! command -v "$1" >/dev/null 2>&1 && [ ! -e "$1" ]; then
        echo "$1 is missing: apt-get install --no-install-recommends $2" >&2
        exit 3
    fi
}

need javac openjdk-17-jdk-headless
need "$json" libandroid-json-java
if ! javac --help | grep -A1 -e '--release' | grep -qw 7; then
    echo "this javac no longer writes class files for Java 7, which dx needs: use JDK 17" >&2
    exit 3
fi
