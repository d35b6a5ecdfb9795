#!/bin/sh
# Compiles the classes without Android and runs their JUnit tests; needs javac and Debian's junit4.
# With arguments: runs the class org.qwtv2.edge.demo.core.CrossCheck with them instead of the tests.
. "$(dirname "$0")/tools.sh"
need /usr/share/java/junit4.jar junit4

classes=$out/test
path=$classes:$json:/usr/share/java/junit4.jar:/usr/share/java/hamcrest-core.jar
rm -rf "$classes"
mkdir -p "$classes"
# shellcheck disable=SC2086 # the flags are words
javac $java_flags -cp "$path" -d "$classes" "$app"/src/main/java/org/qwtv2/edge/demo/core/*.java \
    "$app"/src/test/java/org/qwtv2/edge/demo/core/*.java
if [ $# -gt 0 ]; then
    exec java -cp "$path" org.qwtv2.edge.demo.core.CrossCheck "$@"
fi
tests=$(cd "$app/src/test/java" && find . -name '*Test.java' | sed 's|^\./||; s|\.java$||; s|/|.|g' | sort)
# shellcheck disable=SC2086
exec java -cp "$path" org.junit.runner.JUnitCore $tests
