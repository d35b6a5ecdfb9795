package org.qwtv2.edge.demo;

import android.content.Intent;
import android.os.Bundle;
import android.widget.TextView;
import androidx.activity.EdgeToEdge;
import androidx.appcompat.app.AppCompatActivity;
import java.io.File;
import java.io.IOException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import org.qwtv2.edge.demo.core.Benchmark;
import org.qwtv2.edge.demo.core.Job;

/** Runs one benchmark job that {@code qwtv2-edge profile --device adb} pushed; only the shell of adb may start it. */
public final class BenchmarkActivity extends AppCompatActivity {
    /** One at a time, whatever activities come and go. */
    private static final ExecutorService WORKER = Executors.newSingleThreadExecutor();

    private ThisPhone phone;

    @Override
    protected void onCreate(Bundle saved) {
        super.onCreate(saved);
        EdgeToEdge.enable(this);
        setContentView(R.layout.activity_benchmark);
        phone = new ThisPhone(this);
        if (saved == null) {
            start(getIntent());
        } else { // made again by Android, which ended the job when it stopped the old one; nobody asked for it twice
            show(getString(R.string.benchmark_left), false);
        }
    }

    @Override
    protected void onNewIntent(Intent intent) {
        super.onNewIntent(intent);
        phone.cancel();
        start(intent);
    }

    /** Android gives apps that are not on the screen fewer and slower cores, so leaving ends the job; turning the phone is not leaving. */
    @Override
    protected void onStop() {
        phone.cancel();
        super.onStop();
    }

    private void start(Intent intent) {
        final String job = intent.getStringExtra("job");
        final String dir = intent.getStringExtra("dir");
        final ThisPhone mine = new ThisPhone(this);
        phone = mine;
        if (!Job.isName(job) || dir == null) {
            show(getString(R.string.benchmark_refused, job, dir), false);
            return;
        }
        show(getString(R.string.benchmark_running, job), true);
        WORKER.execute(new Runnable() {
            @Override
            public void run() {
                String said;
                try {
                    String error = new Benchmark(job, mine, emptyFolder(job)).run(new File(dir), getCacheDir(), new Engines());
                    said = error.isEmpty() ? getString(R.string.benchmark_done, job) : getString(R.string.benchmark_failed, job, error);
                } catch (IOException error) {
                    said = getString(R.string.benchmark_failed, job, error.toString());
                }
                final String text = said;
                runOnUiThread(new Runnable() {
                    @Override
                    public void run() {
                        if (phone == mine) { // otherwise the screen is a newer job's
                            show(text, false);
                        }
                    }
                });
            }
        });
    }

    /** {@code jobs/JOB} in this app's folder on the shared storage, where adb's shell can read, without what an older job left. */
    private File emptyFolder(String job) throws IOException {
        File storage = getExternalFilesDir(null);
        if (storage == null) {
            throw new IOException("the shared storage is not mounted");
        }
        File folder = new File(new File(storage, "jobs"), job);
        File[] old = folder.listFiles();
        if (old == null && !folder.mkdirs()) {
            throw new IOException("can't create " + folder);
        }
        for (File file : old == null ? new File[0] : old) {
            if (!file.delete()) {
                throw new IOException("can't delete " + file);
            }
        }
        return folder;
    }

    private void show(String text, boolean running) {
        TextView view = findViewById(R.id.benchmark_text);
        view.setText(text);
        view.setKeepScreenOn(running);
    }
}
