package android.content;

public class Intent {
    public static final int FLAG_GRANT_READ_URI_PERMISSION = 1;
    public static final int FLAG_GRANT_WRITE_URI_PERMISSION = 2;

    public String getStringExtra(String name) { return null; }
    public void setClipData(ClipData clip) {}
    public Intent addFlags(int flags) { return this; }
}
