package android.content;

import java.io.File;

public class Context {
    public static final String POWER_SERVICE = "power";
    public android.content.res.AssetManager getAssets() { return null; }
    public File getCacheDir() { return null; }
    public File getExternalFilesDir(String type) { return null; }
    public ContentResolver getContentResolver() { return null; }
    public Object getSystemService(String name) { return null; }
    public final String getString(int id, Object... arguments) { return null; }
    public android.content.res.Resources getResources() { return null; }
}
