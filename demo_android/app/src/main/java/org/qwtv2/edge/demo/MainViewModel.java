package org.qwtv2.edge.demo;

import android.app.Application;
import android.graphics.Bitmap;
import android.net.Uri;
import androidx.lifecycle.AndroidViewModel;
import androidx.lifecycle.LiveData;
import androidx.lifecycle.MutableLiveData;
import java.io.IOException;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import org.qwtv2.edge.demo.core.AppConfig;
import org.qwtv2.edge.demo.core.Engine;
import org.qwtv2.edge.demo.core.FailedException;
import org.qwtv2.edge.demo.core.GoldenCheck;
import org.qwtv2.edge.demo.core.ImageSpec;
import org.qwtv2.edge.demo.core.NdArray;
import org.qwtv2.edge.demo.core.Outputs;
import org.qwtv2.edge.demo.core.Percentiles;
import org.qwtv2.edge.demo.core.TensorSpec;
import org.qwtv2.edge.demo.core.Timing;

/** Loads the bundled network, checks it against golden.npz and runs pictures; lives on while the screen is turned. */
public final class MainViewModel extends AndroidViewModel {
    private static final int THREADS = 1;
    private static final int RUNS = 300;
    private static final long RUN_NS = 1_500_000_000L;
    private static final int TOP = 5;

    /** One format: its runtime or why there is none, and what was found. */
    private static final class Loaded {
        final AppConfig.Format format;
        Engine engine;
        String failure = "";
        GoldenCheck check;
        List<NdArray> outputs = Collections.emptyList();
        long[] ns = {};

        Loaded(AppConfig.Format format) {
            this.format = format;
        }
    }

    private final MutableLiveData<State> state = new MutableLiveData<>();
    /** Everything below is touched by this thread alone. */
    private final ExecutorService worker = Executors.newSingleThreadExecutor();

    private final ThisPhone phone;
    private final List<Loaded> formats = new ArrayList<>();
    private Network network;
    private String busy = "";
    private String problem = "";
    private String notice = "";
    private String caption = "";
    private Bitmap picture;
    private boolean shows;
    private int next;

    public MainViewModel(Application application) {
        super(application);
        phone = new ThisPhone(application);
        work(R.string.busy_loading, new Task() {
            @Override
            public void run() throws Exception {
                network = new Network(getApplication());
                load();
                publish();
                check();
                showNextSample();
            }
        });
    }

    LiveData<State> state() {
        return state;
    }

    /** Runs the next sample of golden.npz. */
    void runSample() {
        work(R.string.busy_running, new Task() {
            @Override
            public void run() throws Exception {
                showNextSample();
            }
        });
    }

    /** Runs a picture. */
    void runPhoto(final Uri uri, final boolean invert) {
        work(R.string.busy_running, new Task() {
            @Override
            public void run() throws Exception {
                if (network == null) {
                    return; // a picture that arrives after the app was restarted, and found no network
                }
                ImageSpec image = network.config.image;
                TensorSpec input = network.config.inputs.get(0);
                NdArray tensor;
                try {
                    tensor = image.tensor(Photos.read(getApplication().getContentResolver(), uri, image), invert, input);
                } catch (IOException error) {
                    notice = error.getMessage();
                    return;
                }
                show(Collections.singletonList(tensor), text(R.string.photo_caption));
            }
        });
    }

    @Override
    protected void onCleared() {
        phone.cancel();
        worker.execute(new Runnable() {
            @Override
            public void run() {
                for (Loaded one : formats) {
                    if (one.engine != null) {
                        one.engine.close();
                    }
                }
            }
        });
        worker.shutdown();
    }

    private interface Task {
        void run() throws Exception;
    }

    private void work(final int what, final Task task) {
        worker.execute(new Runnable() {
            @Override
            public void run() {
                busy = text(what);
                notice = "";
                publish();
                try {
                    task.run();
                } catch (AppConfig.InvalidException error) {
                    problem = text(R.string.problem_assets, error.getMessage());
                } catch (OutOfMemoryError error) {
                    tell(text(R.string.out_of_memory));
                } catch (Exception error) {
                    problem = text(R.string.problem_other, error.toString());
                }
                busy = "";
                publish();
            }
        });
    }

    /** Something went wrong that leaves the app usable, if its network was loaded. */
    private void tell(String what) {
        if (network == null) {
            problem = text(R.string.problem_other, what);
        } else {
            notice = what;
        }
    }

    private void load() {
        Engines engines = new Engines();
        for (AppConfig.Format format : network.config.formats) {
            Loaded one = new Loaded(format);
            formats.add(one);
            try {
                one.engine = engines.load(format.runtime, network.artifacts.get(format.file), THREADS);
            } catch (FailedException error) {
                one.failure = error.getMessage();
            }
        }
    }

    private void check() throws AppConfig.InvalidException {
        for (Loaded one : formats) {
            if (one.engine != null) {
                try {
                    one.check = GoldenCheck.run(one.engine, network.config, network.golden, one.format.numerics.get(Engines.abi()));
                } catch (FailedException error) {
                    one.failure = error.getMessage();
                }
            }
            publish();
        }
    }

    private void showNextSample() throws AppConfig.InvalidException {
        int at = next;
        next = (next + 1) % network.config.samples;
        show(network.config.sample(network.golden, at), text(R.string.sample_caption, at + 1, network.config.samples));
    }

    private void show(List<NdArray> inputs, String description) {
        picture = bitmap(inputs.get(0));
        caption = description;
        shows = true;
        for (Loaded one : formats) {
            one.outputs = Collections.emptyList();
            one.ns = new long[0];
        }
        publish();
        for (Loaded one : formats) {
            if (one.engine == null) {
                continue;
            }
            one.failure = "";
            try {
                one.engine.set(inputs);
                one.ns = Timing.series(one.engine, phone, RUNS, phone.nanoTime() + RUN_NS);
                one.outputs = one.engine.outputs();
            } catch (FailedException error) {
                one.failure = error.getMessage();
            }
            publish();
        }
    }

    private Bitmap bitmap(NdArray input) {
        ImageSpec image = network.config.image;
        if (image == null) {
            return null;
        }
        return Bitmap.createBitmap(
                image.pixels(input, network.config.inputs.get(0)), image.width, image.height, Bitmap.Config.ARGB_8888);
    }

    private String text(int id, Object... arguments) {
        return getApplication().getString(id, arguments);
    }

    private void publish() {
        boolean photos = network != null && network.config.image != null;
        List<State.Format> cards = new ArrayList<>();
        for (Loaded one : formats) {
            cards.add(card(one));
        }
        state.postValue(new State(
                busy,
                problem,
                notice,
                network == null ? "" : network.config.title,
                photos,
                photos && network.config.image.channels == 1,
                picture,
                caption,
                cards,
                formats.size() == 2 ? agreement(formats.get(0), formats.get(1)) : ""));
    }

    private State.Format card(Loaded one) {
        State.Format.Badge badge = State.Format.Badge.NONE;
        String badgeText = "";
        if (one.check != null && one.check.differingBytes == 0) {
            badge = State.Format.Badge.EXACT;
            badgeText = text(R.string.badge_exact, network.config.samples);
        } else if (one.check != null && one.check.differingBytes > 0) {
            badge = State.Format.Badge.DIFFERS;
            badgeText = text(R.string.badge_differs, one.check.differingBytes, one.check.bytes);
            int declared = one.format.declaredLsb.get(Engines.abi());
            if (declared > 0) {
                badgeText += " " + text(R.string.badge_declared, declared);
            }
        } else if (one.check != null) {
            badgeText = text(R.string.badge_none, Engines.abi());
        }
        return new State.Format(one.format.file, badge, badgeText, one.failure.isEmpty() ? found(one) : one.failure);
    }

    private String found(Loaded one) {
        if (!shows || one.outputs.isEmpty()) {
            return "";
        }
        StringBuilder lines = new StringBuilder();
        NdArray output = one.outputs.get(0);
        TensorSpec spec = network.config.outputs.get(0);
        double[] values = output.values();
        if (network.config.classes) {
            for (int place : Outputs.largest(output, TOP)) {
                lines.append(text(R.string.class_line, network.label(place), spec.real(values[place]))).append('\n');
            }
        } else {
            lines.append(text(R.string.values_line, values.length)).append('\n');
        }
        double[] ms = Percentiles.of(one.ns, 50, 90, 99);
        return lines.append(text(R.string.latency_line, ms[0] / 1e6, ms[1] / 1e6, ms[2] / 1e6, one.ns.length, THREADS)).toString();
    }

    private String agreement(Loaded a, Loaded b) {
        StringBuilder lines = new StringBuilder();
        if (a.check != null && b.check != null) {
            if (network.config.classes) {
                lines.append(text(R.string.agreement_class, a.check.sameClass(b.check), network.config.samples)).append('\n');
            }
            lines.append(text(R.string.agreement_bytes, a.check.differingBytes(b.check), network.config.samples));
        }
        if (!a.outputs.isEmpty() && !b.outputs.isEmpty()) {
            lines.append('\n').append(text(R.string.agreement_now, Outputs.differingBytes(a.outputs, b.outputs)));
        }
        return lines.toString();
    }
}
