package org.qwtv2.edge.demo;

import android.content.Context;
import android.os.Build;
import android.os.PowerManager;
import android.os.Process;
import java.io.BufferedReader;
import java.io.FileReader;
import java.io.IOException;
import org.qwtv2.edge.demo.core.Benchmark;

/** What Android and Linux tell about this phone. */
final class ThisPhone implements Benchmark.Phone {
    private final PowerManager power;
    private volatile boolean cancelled;

    ThisPhone(Context context) {
        power = (PowerManager) context.getSystemService(Context.POWER_SERVICE);
    }

    /** Makes the run under way stop after its present invocation. */
    void cancel() {
        cancelled = true;
    }

    @Override
    public boolean cancelled() {
        return cancelled;
    }

    @Override
    public long nanoTime() {
        return System.nanoTime();
    }

    @Override
    public String appVersion() {
        return BuildConfig.VERSION_NAME;
    }

    @Override
    public String abi() {
        return Engines.abi();
    }

    @Override
    public String model() {
        return Build.MANUFACTURER + " " + Build.MODEL;
    }

    @Override
    public int pid() {
        return Process.myPid();
    }

    @Override
    public int thermalStatus() {
        return Build.VERSION.SDK_INT >= 29 && power != null ? power.getCurrentThermalStatus() : -1;
    }

    @Override
    public long peakRssBytes() {
        try (BufferedReader status = new BufferedReader(new FileReader("/proc/self/status"))) {
            for (String line = status.readLine(); line != null; line = status.readLine()) {
                if (line.startsWith("VmHWM:")) {
                    return 1024 * Long.parseLong(line.replaceAll("[^0-9]", ""));
                }
            }
        } catch (IOException error) {
            return 0; // some phones keep it from apps
        }
        return 0;
    }
}
