package org.qwtv2.edge.demo;

import android.content.Context;
import android.content.res.AssetManager;
import java.io.ByteArrayInputStream;
import java.io.File;
import java.io.FileNotFoundException;
import java.io.IOException;
import java.io.InputStream;
import java.nio.charset.StandardCharsets;
import java.util.Collections;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.qwtv2.edge.demo.core.AppConfig;
import org.qwtv2.edge.demo.core.NdArray;
import org.qwtv2.edge.demo.core.Npz;
import org.qwtv2.edge.demo.core.Outputs;
import org.qwtv2.edge.demo.core.Streams;

/** The network that is bundled as {@code assets/qwtv2}, every file checked against the hash in app.json. */
final class Network {
    private static final String FOLDER = "qwtv2";
    private static final String DESCRIPTION = "app.json";
    private static final String GOLDEN = "golden.npz";
    private static final String LABELS = "labels.txt";

    final AppConfig config;
    final Map<String, NdArray> golden;
    /** Names of the classes, empty where there are none. */
    final List<String> labels;
    /** Artifact's name -> a copy of it that runtimes can open. */
    final Map<String, File> artifacts = new HashMap<>();

    private final AssetManager assets;

    /**
     * @throws AppConfig.InvalidException for assets that are missing or do not belong together.
     * @throws IOException where the phone's storage fails.
     */
    Network(Context context) throws AppConfig.InvalidException, IOException {
        assets = context.getAssets();
        config = AppConfig.parse(new String(read(DESCRIPTION), StandardCharsets.UTF_8));
        try {
            golden = Npz.read(new ByteArrayInputStream(checked(GOLDEN)));
        } catch (IOException error) {
            throw new AppConfig.InvalidException(GOLDEN + ": " + error.getMessage(), error);
        }
        labels = config.files.containsKey(LABELS)
                ? Outputs.labels(new String(checked(LABELS), StandardCharsets.UTF_8))
                : Collections.<String>emptyList();
        File folder = new File(context.getCacheDir(), FOLDER);
        if (!folder.isDirectory() && !folder.mkdirs()) {
            throw new IOException("can't create " + folder);
        }
        for (AppConfig.Format format : config.formats) {
            File file = new File(folder, format.file);
            try (InputStream stream = open(format.file)) {
                check(format.file, Streams.writeAtomic(file, stream));
            }
            artifacts.put(format.file, file);
        }
    }

    private byte[] checked(String name) throws AppConfig.InvalidException, IOException {
        byte[] data = read(name);
        check(name, Streams.sha256(data));
        return data;
    }

    private void check(String name, String hash) throws AppConfig.InvalidException {
        if (!hash.equals(config.files.get(name))) {
            throw new AppConfig.InvalidException(name + " is not the file that app.json was written for (SHA-256 " + hash + ")");
        }
    }

    private byte[] read(String name) throws AppConfig.InvalidException, IOException {
        try (InputStream stream = open(name)) {
            return Streams.readAll(stream);
        }
    }

    private InputStream open(String name) throws AppConfig.InvalidException, IOException {
        try {
            return assets.open(FOLDER + "/" + name);
        } catch (FileNotFoundException error) {
            throw new AppConfig.InvalidException("the app was built without assets/" + FOLDER + "/" + name, error);
        }
    }

    /** The name of a class. */
    String label(int place) {
        return place < labels.size() ? labels.get(place) : Integer.toString(place);
    }
}
